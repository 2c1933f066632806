"""What a verb may touch of the world outside, and how it ends.

A verb gets its folder, streams, clocks and clients from its ``Session``; tests replace them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from controller.kube.client import KubeClient
    from controller.registry.client import RegistryClient

DONE = 0
FAILED = 1
WRONG_USAGE = 2
NOT_READY = 3
INTERRUPTED = 130

PROGRAM = "crossdock"
PLUGIN_PROGRAM = "kubectl crossdock"


class CommandError(Exception):
    """A verb failed; the text names the thing, the place and the remedy. Exit code 1."""

    code = FAILED


class UsageError(CommandError):
    """The command line is wrong; the usage is shown with the text. Exit code 2."""

    code = WRONG_USAGE


class NotReadyError(CommandError):
    """What was waited for did not happen in time. Exit code 3."""

    code = NOT_READY


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """How the command line reaches registries."""

    ca_bundle: Path | None = None
    insecure: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)  # names proxies


def connect_cluster(
    kubeconfig: Path | None, context: str | None
) -> AbstractAsyncContextManager[KubeClient]:
    """Connect to the cluster of a kubeconfig, as the person who calls."""
    from controller import __version__  # noqa: PLC0415 - the client's imports take 0.6 s
    from controller.kube.client import KubeClient  # noqa: PLC0415 - as above

    return KubeClient.connect(
        kubeconfig=kubeconfig.expanduser() if kubeconfig is not None else None,
        context=context,
        user_agent=f"{PROGRAM}/{__version__}",
    )


def connect_registries(options: RegistryOptions) -> AbstractAsyncContextManager[RegistryClient]:
    """Open a client for OCI registries."""
    from controller import __version__  # noqa: PLC0415 - the client's imports take 0.2 s
    from controller.registry.client import RegistryClient  # noqa: PLC0415 - as above
    from controller.registry.proxies import Proxies  # noqa: PLC0415 - as above

    return RegistryClient(
        user_agent=f"{PROGRAM}/{__version__}",
        ca_bundle=options.ca_bundle,
        insecure_registries=options.insecure,
        proxies=Proxies.from_environment(options.environ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One call of the command: folder, environment, streams, clocks and ways to connect."""

    program: str = PROGRAM
    folder: Path = field(default_factory=Path.cwd)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    cluster: Callable[[Path | None, str | None], AbstractAsyncContextManager[KubeClient]] = (
        connect_cluster
    )
    registries: Callable[[RegistryOptions], AbstractAsyncContextManager[RegistryClient]] = (
        connect_registries
    )

    def say(self, line: str) -> None:
        """Print a line of the result."""
        print(line, file=self.stdout, flush=True)

    def note(self, line: str) -> None:
        """Print a line about the work, beside the result: to stderr."""
        print(line, file=self.stderr, flush=True)

    def path(self, text: str | Path) -> Path:
        """Return a path that was typed relative to the session's folder."""
        return self.folder / Path(text).expanduser()

    def shown(self, path: Path) -> str:
        """Return a path as the person would type it: relative where it lies in the folder."""
        try:
            return str(path.relative_to(self.folder))
        except ValueError:
            return str(path)

    def progress(self) -> Progress:
        """Return the line that shows how far long work has come."""
        return Progress(self.stderr, width=shutil.get_terminal_size().columns)


class Progress:
    """A line on a terminal that is rewritten in place; on any other stream nothing."""

    __slots__ = ("_shown", "_stream", "_width", "interactive")

    def __init__(self, stream: TextIO, *, width: int) -> None:
        self._stream = stream
        self._width = width
        self._shown = ""
        self.interactive = stream.isatty()

    def show(self, text: str) -> None:
        """Replace what the line shows; too long a text is cut at the terminal's width."""
        if not self.interactive:
            return
        line = text if len(text) < self._width else text[: self._width - 2] + "…"
        if line != self._shown:
            self._stream.write(f"\r\x1b[K{line}")
            self._stream.flush()
            self._shown = line

    def clear(self) -> None:
        """Take the line away, so that ordinary output can follow."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
