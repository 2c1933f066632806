"""Docker's credential helpers: small programs that are asked for the login of one registry.

A helper runs in a session of its own, for a bounded time, and what it prints is bounded too; none
of its words are passed on, since they may be secrets.

Source: Docker's ``docker-credential-*`` protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from controller.registry.credentials import Credential, read_entry
from controller.registry.failures import AuthError, printable

SECONDS = 15.0
OUTPUT_MAX = 64 * 1024
KEPT_SECONDS = 300.0
KEPT_MAX = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_NOT_FOUND = "credentials not found in native keychain"
_OTHERS_MAY_WRITE = 0o002


@dataclass(slots=True)
class _Kept:
    """The answer of one helper about one registry."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    credential: Credential | None = None
    until: float = 0.0


class CredentialHelpers:
    """Runs credential helpers, each once in five minutes for one registry.

    Args:
        search_path: where they are looked for.
        environment: of the helpers.
        seconds: after which a helper is ended.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        search_path: str,
        environment: Mapping[str, str],
        *,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._search_path = search_path
        self._environment = dict(environment)
        self._seconds = seconds
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    async def ask(self, name: str, server: str) -> Credential | None:
        """Return what a helper has for a registry, None when it has nothing.

        Args:
            name: of the helper, the part of the program's name after ``docker-credential-``.
            server: the registry, as the helper knows it.

        Raises:
            AuthError: there is no such helper, or it gave no answer that can be read.
        """
        kept = self._kept.setdefault((name, server), _Kept())
        self._kept.move_to_end((name, server))
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        async with kept.lock:
            if self._clock() >= kept.until:
                program = await asyncio.to_thread(find_helper, name, self._search_path)
                output, code = await self._run(program, server)
                kept.credential = read_answer(output, code, name=name, program=program)
                kept.until = self._clock() + KEPT_SECONDS
            return kept.credential

    async def _run(self, program: str, server: str) -> tuple[bytes, int]:
        """Run a helper; return what it printed, at most one byte beyond the limit, and its code."""
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                "get",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,
                limit=OUTPUT_MAX,
            )
        except OSError as error:
            raise AuthError(f"cannot run {program}: {error.strerror}") from None
        try:
            async with asyncio.timeout(self._seconds):
                output = await _converse(process, server)
                return output, await process.wait()
        except TimeoutError:
            raise AuthError(f"{program} gave no answer in {self._seconds:g} s") from None
        finally:
            # What it started and left behind goes with it.
            _kill_group(process)
            await process.wait()


def find_helper(name: str, search_path: str) -> str:
    """Return the path of a helper's program.

    Raises:
        AuthError: there is none, or others than its owner may write it.
    """
    shown = printable(name, limit=80)
    if not _NAME.fullmatch(name):
        raise AuthError(f'"{shown}" is no name of a credential helper')
    program = shutil.which(f"docker-credential-{name}", path=search_path)
    if program is None:
        raise AuthError(
            f"credential helper docker-credential-{shown} is not on the PATH",
            remedy="install it, or log in without it",
        )
    if Path(program).stat().st_mode & _OTHERS_MAY_WRITE:
        raise AuthError(f"everybody may write {program}", remedy="take that right away")
    return str(Path(program).absolute())


def read_answer(output: bytes, code: int, *, name: str, program: str) -> Credential | None:
    """Return the credential that a helper printed, None when it says that it has none.

    Raises:
        AuthError: it failed or printed something else; none of its words are in the error.
    """
    if len(output) > OUTPUT_MAX:
        raise AuthError(f"{program} printed more than {OUTPUT_MAX} bytes")
    if code != 0:
        if _NOT_FOUND in output.decode("utf-8", "replace"):
            return None
        raise AuthError(f"{program} failed with exit code {code}", remedy="log in again")
    try:
        answer = json.loads(output)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise AuthError(f"{program} gave an answer that is no credential") from None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise AuthError(f"{program} gave an answer that is no credential")
    is_token = username == "<token>"
    values = {"identitytoken": secret} if is_token else {"username": username, "password": secret}
    return read_entry(values, origin=f"credential helper {name}", explicit=False)


async def _converse(process: asyncio.subprocess.Process, server: str) -> bytes:
    """Send a helper its question and return what it prints, up to the limit."""
    if process.stdin is None or process.stdout is None:
        raise AssertionError("both streams are pipes")
    with contextlib.suppress(ConnectionError):
        process.stdin.write(server.encode())
        await process.stdin.drain()
    process.stdin.close()
    output = b""
    while chunk := await process.stdout.read(OUTPUT_MAX):
        output += chunk
        if len(output) > OUTPUT_MAX:
            _kill_group(process)
            break
    return output


def _kill_group(process: asyncio.subprocess.Process) -> None:
    """End a helper and what it started; its session is its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
