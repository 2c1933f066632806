"""TLS to the API server, with certificates that may change while a session is open.

Guarantees:
    Files are read and contexts are built in threads, not in the event loop. What is open stays
    open; each new connection uses the newest certificates that fit together. No private key is
    written to a disk.

Source: the Kubernetes rules for ``certificate-authority``, ``client-certificate`` and
``client-key``, whose ``-data`` forms win; client-go's reloading of rotated files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

CHECK_SECONDS = 60.0  # until the files are read again
RETRY_SECONDS = 10.0  # the same after certificates that could not be used
READ_DEADLINE = 10.0
FILE_MAX = 4 * 1024 * 1024  # bytes of one file

_log = structlog.get_logger("controller.kube")


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Where trust and identity come from: files, or PEM in memory, which wins.

    Without an authority the system's are trusted; ``verify`` false trusts everybody.
    """

    authority_file: Path | None = None
    authority: bytes | None = None
    certificate_file: Path | None = None
    certificate: bytes | None = None
    key_file: Path | None = None
    key: bytes | None = field(default=None, repr=False)
    verify: bool = True

    def anonymous(self) -> TlsSettings:
        """Return the same trust without an identity."""
        return replace(self, certificate_file=None, certificate=None, key_file=None, key=None)


@dataclass(frozen=True, slots=True)
class Material:
    """All that a TLS context is made of; the certificates are PEM."""

    authority: bytes | None
    certificate: bytes | None
    key: bytes | None = field(repr=False)
    verify: bool


def read_material(settings: TlsSettings) -> Material:
    """Read the files of the settings; waits for the disk.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is no certificate by its size.
    """
    return Material(
        _content(settings.authority, settings.authority_file),
        _content(settings.certificate, settings.certificate_file),
        _content(settings.key, settings.key_file),
        settings.verify,
    )


def _content(data: bytes | None, path: Path | None) -> bytes | None:
    if data is not None or path is None:
        return data
    with path.open("rb") as stream:
        content = stream.read(FILE_MAX + 1)
    if len(content) > FILE_MAX:
        raise ValueError(f"{path} is larger than {FILE_MAX // 2**20} MiB")
    return content


def build_context(material: Material) -> ssl.SSLContext:
    """Build a client's TLS context; takes some 20 ms.

    Raises:
        OSError: the certificates cannot be used, or the key is not theirs.
        ValueError: as above.
    """
    authority = None
    if material.authority is not None:
        # Bundles carry names of authorities in any language beside the certificates.
        authority = material.authority.decode("ascii", errors="ignore")
        if "-----BEGIN" not in authority:
            raise ValueError("the certificate authority is no PEM certificate")
    context = ssl.create_default_context(cadata=authority)
    if material.certificate is not None:
        pem = material.certificate + b"\n" + (material.key or b"")
        with _as_file(pem) as path:
            # Without a password given, OpenSSL would ask at the terminal for that of a key.
            context.load_cert_chain(path, password="")
    if not material.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give a content to a library that takes nothing but paths."""
    if hasattr(os, "memfd_create"):  # in memory: nothing is left behind, not even by a kill
        with os.fdopen(os.memfd_create("pem"), "wb") as stream:
            stream.write(content)
            stream.flush()
            yield f"/proc/self/fd/{stream.fileno()}"
        return
    with tempfile.NamedTemporaryFile() as stream:
        stream.write(content)
        stream.flush()
        yield stream.name


class TlsContexts:
    """The TLS context for new connections, renewed when the certificates have changed.

    Args:
        settings: tells what the certificates come from now.
        look_again: reads what the settings come from, when a handshake has failed.
        origin: where the settings were read from, for the log.
    """

    def __init__(
        self,
        settings: Callable[[], TlsSettings],
        *,
        look_again: Callable[[], Awaitable[None]],
        origin: str,
    ) -> None:
        self._settings = settings
        self._look_again = look_again
        self._origin = origin
        self._lock = asyncio.Lock()
        self._clock = asyncio.get_running_loop().time
        self._tried: TlsSettings | None = None
        self._material: Material | None = None
        self._context: ssl.SSLContext | None = None
        self._reading: asyncio.Future[Material] | None = None
        self._check_at = 0.0
        self._complaint = ""

    async def open(self) -> None:
        """Build the first context.

        Raises:
            OSError: the certificates cannot be used, or not be read in time.
            ValueError: as above.
        """
        async with self._lock:
            await self._update(self._settings())

    async def current(self) -> ssl.SSLContext:
        """Return the context for a new connection, after ``open``.

        The files are read at most once a minute, for all callers together. Certificates that
        cannot be used are logged, and the earlier ones stay.
        """
        if self._is_due():
            async with self._lock:
                if self._is_due():
                    await self._try_update()
        if self._context is None:
            raise RuntimeError("not opened")
        return self._context

    async def renew(self, used: ssl.SSLContext) -> bool:
        """Read all certificates again after a failed handshake.

        Args:
            used: the context that the handshake failed with.

        Returns:
            Whether there is another context now.
        """
        async with self._lock:
            if self._context is used:
                await self._look_again()
                await self._try_update()
            return self._context is not used

    def _is_due(self) -> bool:
        return self._clock() >= self._check_at or self._settings() != self._tried

    async def _try_update(self) -> None:
        settings = self._settings()
        try:
            await self._update(settings)
        except (OSError, ValueError) as error:
            self._tried, self._check_at = settings, self._clock() + RETRY_SECONDS
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.warning(
                    "changed certificates cannot be used: the earlier ones stay",
                    origin=self._origin,
                    error=self._complaint,
                )

    async def _update(self, settings: TlsSettings) -> None:
        if self._reading is not None and not self._reading.done():
            # A disk that hangs holds one thread, not all of those that names are looked up in.
            raise TimeoutError("the files are still being read")
        async with asyncio.timeout(READ_DEADLINE):
            loop = asyncio.get_running_loop()
            self._reading = loop.run_in_executor(None, read_material, settings)
            self._reading.add_done_callback(lambda done: done.cancelled() or done.exception())
            material = await asyncio.shield(self._reading)
            if material != self._material:
                context = await asyncio.to_thread(build_context, material)
                if self._context is not None:
                    _log.info("new connections use changed certificates", origin=self._origin)
                self._material, self._context = material, context
        # Not before: whoever asks in between waits, and does not get the earlier context.
        self._tried, self._check_at = settings, self._clock() + CHECK_SECONDS
        self._complaint = ""
