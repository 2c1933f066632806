"""Which certificates are believed and shown, read again when their files change.

Source: Docker's and containerd's folders of certificates per registry (``ca.crt``, ``*.crt``,
``*.cert`` with ``*.key``); OpenSSL's default authorities.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import certifi
import structlog

from controller.registry.failures import TLSError

log = structlog.get_logger(__name__)

LOOK_SECONDS = 5.0  # between two looks at the files
HOSTS_MAX = 64
FILES_MAX = 64
_FOLDER = re.compile(r"(?!\.)[a-z0-9.\[\]:-]{1,260}", re.ASCII)

Stamp: TypeAlias = tuple[tuple[str, int, int, int], ...]


def tls_context(ca_bundle: Path | None, folder: Path | None = None) -> ssl.SSLContext:
    """Return how TLS is spoken: version 1.2 or newer, the system's authorities and further ones.

    Args:
        ca_bundle: file of PEM certificates that are trusted too; None for none.
        folder: of one registry: its ``*.crt`` are trusted too, its ``*.cert`` is shown with the
            ``*.key`` of the same name; None for none.

    Raises:
        TLSError: a file cannot be read or holds no certificate.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not system_has_authorities():
        context.load_verify_locations(certifi.where())
    if ca_bundle is not None:
        _believe(context, ca_bundle, "--ca-bundle-path")
    for path in _files(folder):
        if path.suffix == ".crt":
            _believe(context, path, "--registry-certificates")
        elif path.suffix == ".cert":
            _show(context, path)
    return context


def _believe(context: ssl.SSLContext, path: Path, flag: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise TLSError(
            f"no certificates could be read from {path}",
            remedy=f"{flag} needs files of PEM certificates",
        ) from None
    except OSError as error:
        raise TLSError(f"cannot read {path}: {error.strerror}", remedy=f"check {flag}") from None


def _show(context: ssl.SSLContext, path: Path) -> None:
    key = path.with_suffix(".key")
    try:
        context.load_cert_chain(path, key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError):
        raise TLSError(
            f"cannot use the client certificate {path} with {key.name}",
            remedy="--registry-certificates needs PEM files, the key without password",
        ) from None


def _no_password() -> str:
    """Answer the question for a key's password, which would wait for a terminal otherwise."""
    return ""


def system_has_authorities() -> bool:
    """Tell whether the system brings certificate authorities; minimal images do not."""
    paths = ssl.get_default_verify_paths()
    return (
        Path(paths.cafile or "/nonexistent").is_file()
        or Path(paths.capath or "/nonexistent").is_dir()
    )


def folder_names(host: str) -> tuple[str, ...]:
    """Return how the folder of a registry may be called: containerd's way and Docker's.

    Args:
        host: host and port as URLs name it; other text has no folder.
    """
    name = host.lower()
    if not _FOLDER.fullmatch(name) or ".." in name:
        return ()
    bare, colon, port = name.rpartition(":")
    if not colon or "]" in port:
        return (name,)
    return (f"{bare}_{port}_", name)


def _files(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix in (".crt", ".cert"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise TLSError(
            f"cannot read {folder}: {error.strerror}", remedy="check --registry-certificates"
        ) from None
    return found[:FILES_MAX]


@dataclass(slots=True)
class _Known:
    """The context of one host, and the files that it was made from."""

    context: ssl.SSLContext
    stamp: Stamp
    looked: float


@dataclass(slots=True)
class Trust:
    """How TLS is spoken to each host; follows its files without a restart.

    Attributes:
        ca_bundle: certificates that are trusted beside the system's.
        folder: folders of certificates by registry: ``<host>_<port>_``, ``<host>:<port>`` or
            ``<host>``; None for none.
        clock: monotonic seconds.
    """

    ca_bundle: Path | None = None
    folder: Path | None = None
    clock: Callable[[], float] = field(kw_only=True)
    _known: OrderedDict[str, _Known] = field(default_factory=OrderedDict)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def context(self, host: str) -> ssl.SSLContext:
        """Return how TLS is spoken to a host; another object once the files changed.

        Files that became unreadable change nothing: what was read before stays in force.

        Args:
            host: host and port as URLs name it; empty for what all hosts share.

        Raises:
            TLSError: the files cannot be read, and never could.
        """
        names = folder_names(host) if self.folder is not None else ()
        key = host.lower() if names else ""
        known = self._known.get(key)
        if known is not None and self.clock() - known.looked < LOOK_SECONDS:
            self._known.move_to_end(key)
            return known.context
        async with self._lock:
            return await self._look(key, names)

    async def _look(self, key: str, names: tuple[str, ...]) -> ssl.SSLContext:
        known = self._known.get(key)
        now = self.clock()
        if known is not None and now - known.looked < LOOK_SECONDS:
            return known.context
        try:
            folder = await asyncio.to_thread(self._folder_of, names)
            if folder is None and key:
                known = self._known[key] = await self._shared(now)
            else:
                known = self._known[key] = await self._read(known, folder, now)
        except TLSError as error:
            if known is None:
                raise
            log.warning("certificates cannot be read again, the last ones stay", error=str(error))
            known.looked = now
        while len(self._known) > HOSTS_MAX:
            self._known.popitem(last=False)
        return known.context

    async def _shared(self, now: float) -> _Known:
        context = await self._look("", ())
        return _Known(context, (), now)

    async def _read(self, known: _Known | None, folder: Path | None, now: float) -> _Known:
        stamp = await asyncio.to_thread(self._stamp, folder)
        if known is not None and known.stamp == stamp:
            known.looked = now
            return known
        context = await asyncio.to_thread(tls_context, self.ca_bundle, folder)
        if known is not None:
            log.info("certificates were read again")
        return _Known(context, stamp, now)

    def _folder_of(self, names: tuple[str, ...]) -> Path | None:
        if self.folder is None:
            return None
        return next((path for name in names if (path := self.folder / name).is_dir()), None)

    def _stamp(self, folder: Path | None) -> Stamp:
        paths = [self.ca_bundle] if self.ca_bundle is not None else []
        for path in _files(folder):
            paths += [path, path.with_suffix(".key")] if path.suffix == ".cert" else [path]
        stamp: list[tuple[str, int, int, int]] = []
        for path in paths:
            try:
                status = path.stat()
            except OSError:
                stamp.append((str(path), 0, 0, 0))
            else:
                stamp.append((str(path), status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(stamp)
