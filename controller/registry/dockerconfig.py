"""Credentials of the person or process itself: Docker's and Podman's files, credential helpers.

Source: Docker's ``config.json`` and ``docker-credential-*`` protocol; Podman's ``auth.json``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.registry.credentials import Credential, Keychain, normalise_key, read_entry
from controller.registry.failures import AuthError, printable
from controller.registry.reference import DEFAULT_REGISTRY, Reference

HUB_KEY = "https://index.docker.io/v1/"
FILE_MAX = 4 * 1024 * 1024
HELPER_SECONDS = 15.0
HELPER_OUTPUT_MAX = 64 * 1024
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_NOT_FOUND = "credentials not found in native keychain"
_OTHERS_MAY_WRITE = 0o002


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """The first configuration file that exists, read at each use.

    Attributes:
        files: in the order in which they are looked for.
        search_path: where credential helpers are looked for; None runs no helpers.
        environment: of the helpers.
        helper_seconds: after which a helper is ended.
    """

    files: tuple[Path, ...]
    search_path: str | None
    environment: Mapping[str, str]
    helper_seconds: float = HELPER_SECONDS

    async def credentials_for(self, reference: Reference) -> list[Credential]:
        """Return the credential that the file has for a reference.

        Raises:
            AuthError: the file or the helper's answer cannot be read.
        """
        found = await asyncio.to_thread(self._read)
        if found is None:
            return []
        path, config = found
        server = HUB_KEY if reference.registry == DEFAULT_REGISTRY else reference.registry
        helper = _section(config, "credHelpers", path).get(server) or config.get("credsStore")
        if helper and self.search_path is not None:
            credential = await self._ask_helper(str(helper), server)
            return [credential] if credential is not None else []
        for key, values in _candidates(_section(config, "auths", path), reference):
            origin = f"{path}, entry {printable(key, limit=120)}"
            return [read_entry(values, origin=origin, explicit=False)]
        return []

    def _read(self) -> tuple[Path, dict[str, Any]] | None:
        for path in self.files:
            try:
                with path.open("rb") as file:
                    raw = file.read(FILE_MAX + 1)
                config = json.loads(raw)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError, RecursionError) as error:
                cause = error.strerror if isinstance(error, OSError) else "it is no valid JSON"
                raise AuthError(f"cannot read {path}: {cause}", remedy="mend the file") from None
            if not isinstance(config, dict):
                raise AuthError(f"cannot read {path}: it is no JSON object", remedy="mend the file")
            return path, config
        return None

    async def _ask_helper(self, name: str, server: str) -> Credential | None:
        program = await asyncio.to_thread(self._find_helper, name)
        answer = await self._run(program, server)
        if answer is None:
            return None
        username, secret = answer
        origin = f"credential helper {name}"
        if username == "<token>":
            return Credential(identity_token=secret, origin=origin, explicit=False)
        return Credential(username, secret, origin=origin, explicit=False)

    def _find_helper(self, name: str) -> str:
        shown = printable(name, limit=80)
        if not _HELPER_NAME.fullmatch(name):
            raise AuthError(f'"{shown}" is no name of a credential helper')
        program = shutil.which(f"docker-credential-{name}", path=self.search_path)
        if program is None:
            raise AuthError(
                f"credential helper docker-credential-{shown} is not on the PATH",
                remedy="install it, or log in without it",
            )
        if Path(program).stat().st_mode & _OTHERS_MAY_WRITE:
            raise AuthError(f"everybody may write {program}", remedy="take that right away")
        return str(Path(program).absolute())

    async def _run(self, program: str, server: str) -> tuple[str, str] | None:
        process = await asyncio.create_subprocess_exec(
            program,
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(self.environment),
            start_new_session=True,
            limit=HELPER_OUTPUT_MAX,
        )
        try:
            async with asyncio.timeout(self.helper_seconds):
                output = await _converse(process, server)
                await process.wait()
        except TimeoutError:
            _kill_group(process)
            await process.wait()
            raise AuthError(f"{program} gave no answer in {self.helper_seconds:g} s") from None
        except BaseException:
            _kill_group(process)
            raise
        return _read_answer(program, process.returncode, output)


async def _converse(process: asyncio.subprocess.Process, server: str) -> bytes:
    """Send a helper its question and return what it prints, up to the limit."""
    if process.stdin is None or process.stdout is None:
        raise AssertionError("both streams are pipes")
    with contextlib.suppress(ConnectionError):
        process.stdin.write(server.encode())
        await process.stdin.drain()
    process.stdin.close()
    output = b""
    while chunk := await process.stdout.read(HELPER_OUTPUT_MAX):
        output += chunk
        if len(output) > HELPER_OUTPUT_MAX:
            _kill_group(process)
            break
    return output


def _kill_group(process: asyncio.subprocess.Process) -> None:
    """End a helper and what it started; its session is its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _read_answer(program: str, code: int | None, output: bytes) -> tuple[str, str] | None:
    if len(output) > HELPER_OUTPUT_MAX:
        raise AuthError(f"{program} printed more than {HELPER_OUTPUT_MAX} bytes")
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
    return username, secret


def _section(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise AuthError(f"cannot read {path}: {name} is no object", remedy="mend the file")
    return section


def _candidates(auths: dict[str, Any], reference: Reference) -> Iterator[tuple[str, Any]]:
    """Return the entries for a reference: longest path first, then spellings of the host."""
    path = reference.source
    while "/" in path:
        if path in auths:
            yield path, auths[path]
        path = path.rpartition("/")[0]
    for key in (HUB_KEY if path == DEFAULT_REGISTRY else path, path):
        if key in auths:
            yield key, auths[key]
    for key, values in auths.items():
        if normalise_key(key).partition("/")[0] == path.lower():
            yield key, values


def docker_keychain(
    environment: Mapping[str, str], home: Path, *, helpers: bool = False
) -> Keychain:
    """Return the credentials that ``docker login`` and ``podman login`` stored.

    Args:
        environment: names the files: ``DOCKER_CONFIG``, ``REGISTRY_AUTH_FILE``,
            ``XDG_RUNTIME_DIR``, ``XDG_CONFIG_HOME``; ``PATH`` finds helpers.
        home: of the person.
        helpers: run the credential helpers that the file names.

    Returns:
        A keychain of the first file that exists.
    """
    files = [Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"]
    if environment.get("REGISTRY_AUTH_FILE"):
        files.append(Path(environment["REGISTRY_AUTH_FILE"]))
    if environment.get("XDG_RUNTIME_DIR"):
        files.append(Path(environment["XDG_RUNTIME_DIR"]) / "containers" / "auth.json")
    config_home = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files.append(config_home / "containers" / "auth.json")
    search_path = environment.get("PATH") or os.defpath if helpers else None
    return Keychain((DockerConfig(tuple(files), search_path, dict(environment)),))
