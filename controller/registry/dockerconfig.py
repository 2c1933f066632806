"""Logins of the person or process itself: Docker's and Podman's files, and what they lead to.

Source: Docker's ``config.json``; Podman's ``auth.json``.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.registry.credentialhelpers import CredentialHelpers
from controller.registry.credentials import Credential, Keychain, read_entry
from controller.registry.failures import AuthError
from controller.registry.matching import normalise_key, shown_key
from controller.registry.reference import DEFAULT_REGISTRY, Reference

HUB_KEY = "https://index.docker.io/v1/"
FILE_MAX = 4 * 1024 * 1024
_REMEDY = "mend the file"


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """The first configuration file that exists, read at each use.

    Attributes:
        files: in the order in which they are looked for.
        helpers: runs the credential helpers that the file names; None runs none.
    """

    files: tuple[Path, ...]
    helpers: CredentialHelpers | None = None

    async def credentials_for(self, reference: Reference) -> list[Credential]:
        """Return the credential that the file has for a reference.

        Raises:
            AuthError: the file or the helper's answer cannot be read.
        """
        found = await asyncio.to_thread(self._read)
        if found is None:
            return []
        path, config = found
        helper = choose_helper(config, reference, path)
        if helper and self.helpers is not None:
            credential = await self.helpers.ask(helper, server_of(reference))
            return [credential] if credential is not None else []
        return read_login(config, reference, path)

    def _read(self) -> tuple[Path, dict[str, Any]] | None:
        for path in self.files:
            try:
                with path.open("rb") as file:
                    raw = file.read(FILE_MAX + 1)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise _unreadable(path, error.strerror or "it is no file") from None
            return path, read_config(raw, path)
        return None


def read_config(raw: bytes, path: Path) -> dict[str, Any]:
    """Return the content of a configuration file.

    Raises:
        AuthError: it is too large, or no JSON object; the error names the file.
    """
    if len(raw) > FILE_MAX:
        raise _unreadable(path, f"it is larger than {FILE_MAX} bytes")
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        raise _unreadable(path, "it is no valid JSON") from None
    if not isinstance(config, dict):
        raise _unreadable(path, "it is no JSON object")
    return config


def server_of(reference: Reference) -> str:
    """Return how helpers and files name the registry of a reference."""
    return HUB_KEY if reference.registry == DEFAULT_REGISTRY else reference.registry


def choose_helper(config: Mapping[str, Any], reference: Reference, path: Path) -> str:
    """Return the helper for a reference, empty for none: the registry's own, or the one for all.

    Raises:
        AuthError: a helper's name is no text.
    """
    own = _section(config, "credHelpers", path)
    name = own.get(server_of(reference))
    if name is None:
        name = next((own[key] for key in own if _host_of(key) == reference.registry.lower()), None)
    name = name or config.get("credsStore") or ""
    if not isinstance(name, str):
        raise _unreadable(path, "the name of a credential helper is no text")
    return name


def read_login(config: Mapping[str, Any], reference: Reference, path: Path) -> list[Credential]:
    """Return the login that stands in a file for a reference.

    Raises:
        AuthError: it cannot be read; the error names file and entry.
    """
    for key, values in _candidates(_section(config, "auths", path), reference):
        return [read_entry(values, origin=f"{path}, entry {shown_key(key)}", explicit=False)]
    return []


def _candidates(auths: Mapping[str, Any], reference: Reference) -> Iterator[tuple[str, Any]]:
    """Return the entries for a reference: longest path first, then spellings of the host."""
    path = reference.source
    while "/" in path:
        if path in auths:
            yield path, auths[path]
        path = path.rpartition("/")[0]
    for key in (server_of(reference), path):
        if key in auths:
            yield key, auths[key]
    for key, values in auths.items():
        if _host_of(key) == path.lower():
            yield key, values


def _host_of(key: str) -> str:
    return normalise_key(key).partition("/")[0]


def _section(config: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise _unreadable(path, f"{name} is no object")
    return section


def _unreadable(path: Path, cause: str) -> AuthError:
    return AuthError(f"cannot read {path}: {cause}", remedy=_REMEDY)


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
    search_path = environment.get("PATH") or os.defpath
    programs = CredentialHelpers(search_path, environment) if helpers else None
    return Keychain((DockerConfig(tuple(files), programs),))
