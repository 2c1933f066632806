"""Parsing in a process of its own, so that the event loop goes on and a deadline can end it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import Final

import orjson

import controller
from controller.model.content import ParsedPackage, read_index
from controller.model.manifest import ManifestError
from controller.xpkg.errors import LimitExceeded, XpkgError

DEADLINE_SECONDS: Final = 120.0
MEMORY_BYTES: Final = 2**30

_ROOT: Final = str(Path(controller.__file__).parent.parent)
_PROGRAM: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    " from controller.xpkg.parse_worker import main; sys.exit(main(*sys.argv[2:]))"
)
_ANSWER_BYTES_MAX: Final = 64 * 2**10


async def parse_in_process(
    stream: Path,
    lines: Path,
    *,
    source: str = "package.yaml",
    deadline: float = DEADLINE_SECONDS,
    memory: int = MEMORY_BYTES,
) -> ParsedPackage:
    """Read package.yaml and write its parsed form, in another process.

    The process ends with this call, also when the call is cancelled.

    Args:
        stream: package.yaml.
        lines: where the parsed form goes; must not exist, and is removed again on failure.
        source: what errors call the stream.
        deadline: seconds, of both the clock and the processor.
        memory: bytes of address space that the process may use.

    Returns:
        What the parsed form holds.

    Raises:
        ManifestError: the content cannot be read as a package.
        LimitExceeded: it takes more time or memory than allowed.
        XpkgError: the process failed otherwise.
        OSError: a file cannot be read or written.
    """
    arguments = (str(stream), str(lines), source, str(max(1, round(deadline))), str(memory))
    try:
        answer = await _run(arguments, deadline)
        _raise_from(answer)
        return await asyncio.to_thread(_index_of, lines)
    except BaseException:
        lines.unlink(missing_ok=True)  # noqa: ASYNC240 - one system call
        raise


async def _run(arguments: tuple[str, ...], deadline: float) -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        _PROGRAM,
        _ROOT,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_ANSWER_BYTES_MAX,
    )
    try:
        async with asyncio.timeout(deadline):
            answer, complaint = await process.communicate()
    except TimeoutError as error:
        raise LimitExceeded(f"reading the package takes longer than {deadline:g} s") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == -signal.SIGXCPU:
        raise LimitExceeded(f"reading the package takes more than {deadline:g} s of processor time")
    if process.returncode != 0:
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        raise XpkgError(f"the process that reads packages ended with {process.returncode}: {last}")
    return answer


def _raise_from(answer: bytes) -> None:
    """Raise the error that the worker reports, if any."""
    told = orjson.loads(answer)
    if "manifest" in told:
        raise ManifestError(*told["manifest"])
    if "memory" in told:
        raise LimitExceeded("reading the package takes more memory than allowed")
    if "os" in told:
        raise OSError(*told["os"])


def _index_of(lines: Path) -> ParsedPackage:
    with lines.open("rb") as stream:
        return read_index(stream)
