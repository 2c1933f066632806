"""Credentials from an exec plugin: a program that a kubeconfig names.

Guarantees:
    A run has a deadline; then, and on every other way out, the program's whole process group is
    ended; what it leaves running after a good end stays. The program reads nothing from the
    terminal. Its output has a limit, and is in no error; of its complaint the last line is, without
    the values of its environment and what looks like a token.

Source: the Kubernetes rules for client-go credential plugins (``client.authentication.k8s.io``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

END_DEADLINE = 5.0  # seconds until an ended program is gone
OUTPUT_MAX = 1024 * 1024  # bytes
TOLD_MAX = 200  # characters of what the program complains

_SECRET = re.compile(
    r"[A-Za-z0-9+/_=.~-]{32,}"  # tokens and keys, and the longest paths
    r"|(?<=://)[^/\s@]+(?=@)"  # the user of a URL
    r"|(?i:(?<=bearer )|(?<=basic ))\S+"
)


class PluginError(Exception):
    """An exec plugin gave no credentials; the text is one line without any of its values."""


@dataclass(frozen=True, slots=True)
class PluginCommand:
    """How an exec plugin is run."""

    program: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    api_version: str
    cluster: Mapping[str, Any] | None  # what the program wants to know about the cluster


@dataclass(frozen=True, slots=True)
class PluginCredential:
    """What an exec plugin gave: a token, a client certificate with its key, or both."""

    token: str | None = field(repr=False)
    certificate: bytes | None
    key: bytes | None = field(repr=False)
    expires: datetime | None


def plugin_command(
    config: Mapping[str, Any], *, folder: Path, cluster: Mapping[str, Any]
) -> PluginCommand:
    """Read the ``exec`` section of a kubeconfig's user.

    Args:
        config: the section.
        folder: of the kubeconfig; a program with a relative path lies there.
        cluster: the ``cluster`` of an ExecCredential.

    Raises:
        PluginError: the section lacks something, or wants a terminal.
    """
    program, api_version = config.get("command"), config.get("apiVersion")
    if not isinstance(program, str) or not isinstance(api_version, str):
        raise PluginError("exec: it names no command or no apiVersion")
    if config.get("interactiveMode") == "Always":
        raise PluginError(f"exec: {program} wants a terminal (interactiveMode Always)")
    if os.sep in program:
        program = str(folder / program)
    try:
        added = {str(item["name"]): str(item["value"]) for item in config.get("env") or ()}
        arguments = tuple(str(item) for item in config.get("args") or ())
    except (KeyError, TypeError):
        raise PluginError("exec: its args or env are no lists") from None
    wanted = cluster if config.get("provideClusterInfo") else None
    return PluginCommand(program, arguments, added, api_version, wanted)


def parse_output(output: bytes, api_version: str) -> PluginCredential:
    """Read the ExecCredential that a plugin wrote.

    Raises:
        PluginError: it holds no credentials of that version.
    """
    try:
        value = orjson.loads(output)
    except orjson.JSONDecodeError:
        raise PluginError("exec: the program's output is no JSON") from None
    if not isinstance(value, dict) or value.get("kind") != "ExecCredential":
        raise PluginError("exec: the program's output is no ExecCredential")
    if value.get("apiVersion") != api_version:
        raise PluginError(f"exec: the program's output is not of version {api_version}")
    status = value.get("status")
    status = status if isinstance(status, dict) else {}
    token = status.get("token") or None
    certificate = status.get("clientCertificateData") or None
    key = status.get("clientKeyData") or None
    if token is None and certificate is None:
        raise PluginError("exec: the program gave neither a token nor a client certificate")
    if (certificate is None) != (key is None):
        raise PluginError("exec: the program gave a client certificate without its key, or a key")
    return PluginCredential(
        token=None if token is None else str(token),
        certificate=None if certificate is None else str(certificate).encode(),
        key=None if key is None else str(key).encode(),
        expires=_expires(status.get("expirationTimestamp")),
    )


def _expires(value: Any) -> datetime | None:
    if not value:
        return None
    try:
        expires = datetime.fromisoformat(str(value))
    except ValueError:
        expires = None
    if expires is None or expires.tzinfo is None:
        raise PluginError("exec: expirationTimestamp is no time of RFC 3339")
    return expires


async def run_plugin(command: PluginCommand, *, deadline: float) -> PluginCredential:
    """Run an exec plugin.

    Args:
        command: the program.
        deadline: seconds until it is ended.

    Raises:
        PluginError: it cannot be started, fails, takes too long, or gives no credentials.
    """
    spec: dict[str, Any] = {"interactive": False}
    if command.cluster is not None:
        spec["cluster"] = dict(command.cluster)
    info = {"apiVersion": command.api_version, "kind": "ExecCredential", "spec": spec}
    environment = {
        **os.environ,
        **command.environment,
        "KUBERNETES_EXEC_INFO": orjson.dumps(info).decode(),
    }
    try:
        transport, run = await asyncio.get_running_loop().subprocess_exec(
            _Run,
            command.program,
            *command.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # a group of its own, so that all of it can be ended
        )
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise PluginError(f"exec: {command.program} cannot be run: {why}") from None
    try:
        async with asyncio.timeout(deadline):
            await run.ended.wait()
    except TimeoutError:
        text = f"exec: {command.program} did not answer within {deadline:g} s"
        raise PluginError(text) from None
    finally:
        await _end(transport, run)
    if run.too_much:
        raise PluginError(f"exec: {command.program} wrote more than {OUTPUT_MAX} bytes")
    code = transport.get_returncode()
    if code != 0:
        raise PluginError(
            f"exec: {command.program} ended with {code}{_told(bytes(run.errors), command)}"
        )
    return parse_output(bytes(run.output), command.api_version)


class _Run(asyncio.SubprocessProtocol):
    """What a program wrote, and whether it has ended and closed its output."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.errors = bytearray()
        self.too_much = False
        self.gone = asyncio.Event()
        self.ended = asyncio.Event()
        self._open = {1, 2}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        kept = self.output if fd == 1 else self.errors
        kept += data[: OUTPUT_MAX - len(kept)]
        if fd == 1 and len(kept) >= OUTPUT_MAX:
            self.too_much = True
            self.ended.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._open.discard(fd)
        self._look()

    def process_exited(self) -> None:
        self.gone.set()
        self._look()

    def _look(self) -> None:
        if self.gone.is_set() and not self._open:
            self.ended.set()


async def _end(transport: asyncio.SubprocessTransport, run: _Run) -> None:
    """End what is left of a program, and wait for that."""
    if not run.ended.is_set() or run.too_much:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
    transport.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_DEADLINE):
            await run.gone.wait()


def _told(errors: bytes, command: PluginCommand) -> str:
    """Return the last line of a program's complaint, without what may be a secret."""
    lines = errors.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if not last:
        return ""
    for value in sorted(command.environment.values(), key=len, reverse=True):
        last = last.replace(value, "…") if value else last
    return ": " + _SECRET.sub("…", last.replace("\r", " "))[:TOLD_MAX]
