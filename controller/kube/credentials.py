"""Who requests come from, read again when that may have changed.

Guarantees:
    A token file is read again at most a minute later, an exec plugin is run again before its
    credentials expire, and each of them at once after a 401; concurrent callers share one
    reading. A failed reading keeps what was read before: the API server decides about it.

Source: the Kubernetes rules for service account tokens in files and for credential plugins.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from controller.kube.tls import TlsSettings

REREAD_SECONDS = 60.0  # until files are read again
EXPIRY_MARGIN = 60.0  # seconds before their end in which credentials are renewed
EXPIRY_PART = 0.2  # the margin's largest part of a lifetime
RETRY_SECONDS = 10.0  # after a failed reading
PLUGIN_PAUSE = 5.0  # seconds between two runs of a plugin
CHANGE_SECONDS = 60.0  # in which a refusal may be that of the client certificate before

_log = structlog.get_logger("controller.kube")

Stamps = tuple[tuple[int, int, int], ...]


class ConfigError(Exception):
    """There is no usable way to an API server; the text is one line and names the remedy."""


class Credentials(Protocol):
    """Who the requests come from."""

    async def authorization(self) -> str | None:
        """Return the value of the Authorization header; None when TLS or nobody identifies."""

    async def renew(self, refused: str | None) -> bool:
        """Read the credentials again after the API server refused a header value.

        Returns:
            Whether they differ from the refused ones now.

        Raises:
            ConfigError: they cannot be read.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What one reading of a kubeconfig or of a pod's files gave.

    ``lifetime`` is in seconds from the reading on, None without a known end. ``files`` are those
    whose change calls for another reading.
    """

    server: str
    namespace: str
    authorization: str | None = field(repr=False)
    tls: TlsSettings
    server_name: str | None = None  # that the server's certificate must bear
    proxy: str | None = field(default=None, repr=False)
    context: str | None = None  # of the kubeconfig
    reread: bool = False  # whether the token's file can change at any time
    plugin: bool = False
    lifetime: float | None = None
    files: tuple[Path, ...] = ()
    stamps: Stamps = ()


def renewal_delay(*, reread: bool, lifetime: float | None) -> float | None:
    """Decide after how many seconds credentials are read again without a refusal.

    Args:
        reread: they lie in a file that can change at any time.
        lifetime: seconds until they end; None without a known end.

    Returns:
        Seconds; None when only a refusal can tell.
    """
    if lifetime is not None:
        margin = min(EXPIRY_MARGIN, EXPIRY_PART * lifetime)
        return max(PLUGIN_PAUSE, lifetime - margin)
    return REREAD_SECONDS if reread else None


def stamps_of(files: tuple[Path, ...]) -> Stamps:
    """Return what differs when a file was written again; a missing one has zeros."""
    found = []
    for path in files:
        try:
            status = path.stat()
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


class RereadCredentials:
    """Credentials that come from files or a plugin.

    Args:
        login: the first reading.
        load: reads again; raises ``ConfigError``.
    """

    def __init__(self, login: Login, load: Callable[[], Awaitable[Login]]) -> None:
        self._load = load
        self._clock = asyncio.get_running_loop().time
        self._lock = asyncio.Lock()
        self._readings = 0  # that were started
        self._changed_at = float("-inf")  # when a reading gave another client certificate
        self._login = login
        self._read_at = self._look_at = self._ends_at = 0.0
        self._renew_at: float | None = None
        self._take(login)

    @property
    def tls(self) -> TlsSettings:
        """Where trust and the client certificate come from now."""
        return self._login.tls

    async def authorization(self) -> str | None:
        """Return the header's value; see ``Credentials``."""
        if self._is_due() and not (self._lock.locked() and self._clock() < self._ends_at):
            async with self._lock:
                if self._is_due():
                    with contextlib.suppress(ConfigError):
                        await self._read()
        return self._login.authorization

    async def renew(self, refused: str | None) -> bool:
        """Read again after a refusal; see ``Credentials``."""
        readings = self._readings
        async with self._lock:
            # A reading that was under way already may have seen what is refused now.
            read_since = self._readings > readings
            same = self._login.authorization == refused
            if same and not read_since and not self._pausing():
                await self._read()
            # The refused certificate is not told, but may be the one before that change.
            changed = self._clock() < self._changed_at + CHANGE_SECONDS
            return self._login.authorization != refused or changed

    async def look_again(self) -> None:
        """Read again if a file was written since; a failure keeps what was read before."""
        async with self._lock:
            if stamps_of(self._login.files) != self._login.stamps:
                with contextlib.suppress(ConfigError):
                    await self._read()

    def _pausing(self) -> bool:
        return self._login.plugin and self._clock() < self._read_at + PLUGIN_PAUSE

    def _is_due(self) -> bool:
        now = self._clock()
        if self._renew_at is not None and now >= self._renew_at:
            return True
        if not self._login.files or now < self._look_at:
            return False
        if stamps_of(self._login.files) != self._login.stamps:
            return True
        self._look_at = now + REREAD_SECONDS
        return False

    async def _read(self) -> None:
        self._readings += 1
        try:
            login = await self._load()
        except asyncio.CancelledError:
            if self._login.plugin and self._clock() < self._ends_at:
                self._put_off()  # no caller after the other may lose its time to a slow plugin
            raise
        except ConfigError as error:
            self._put_off()
            _log.warning("credentials not renewed: the earlier ones stay", error=str(error))
            raise
        if _identity(login.tls) != _identity(self._login.tls):
            self._changed_at = self._clock()
        self._take(login)

    def _put_off(self) -> None:
        """Try the next reading after a pause."""
        self._read_at = self._clock()
        self._look_at = self._read_at + RETRY_SECONDS
        if self._renew_at is not None:
            self._renew_at = max(self._renew_at, self._look_at)

    def _take(self, login: Login) -> None:
        self._login = login
        self._read_at = self._clock()
        self._look_at = self._read_at + REREAD_SECONDS
        delay = renewal_delay(reread=login.reread, lifetime=login.lifetime)
        self._renew_at = None if delay is None else self._read_at + delay
        self._ends_at = float("inf") if login.lifetime is None else self._read_at + login.lifetime


def _identity(tls: TlsSettings) -> tuple[object, ...]:
    return (tls.certificate_file, tls.certificate, tls.key_file, tls.key)
