"""Downloads: official releases, taken only when their published checksum fits."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import platform
import re
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

PROBE_SECONDS = 3.0
READ_SECONDS = 30.0
TOTAL_SECONDS = 900.0
LIMIT = 400 << 20
CHECKSUM_LIMIT = 1 << 20
_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True)
class Release:
    """Where a release lies.

    ``url`` may hold {os}, {arch}, {Os} and {machine}; ``checksum`` {url} and {folder}: the URL of
    a file with one SHA-256, of one with lines of SHA-256 and file name, or of GitHub's description
    of a release, which names the digest of each of its files.
    """

    url: str
    checksum: str

    def located(self, base: str | None) -> tuple[str, str]:
        """Fill in this machine and, where given, another server.

        Args:
            base: scheme and host (and a path, if any) in place of the official ones.

        Returns:
            The URL of the release and the URL of its checksum.
        """
        machine = platform.machine().lower()
        arch = _MACHINES.get(machine, machine)
        names = {"amd64": "x86_64", "arm64": "arm64"}
        url = self.url.format(
            os=sys.platform, Os=sys.platform.capitalize(), arch=arch, machine=names.get(arch, arch)
        )
        checksum = self.checksum.format(url=url, folder=url.rpartition("/")[0])
        return _moved(url, base), _moved(checksum, base)


class DownloadError(Exception):
    """A release could not be taken; the message says why."""


class Downloader:
    """Fetches releases; each server is tried once, and one that is out of reach is left alone.

    Args:
        base: server in place of the official ones; None for those.
        enabled: False takes nothing from the network.
        announce: called with one line of progress at a time.
    """

    def __init__(
        self, *, base: str | None, enabled: bool = True, announce: Callable[[str], None]
    ) -> None:
        self._base = base
        self._enabled = enabled
        self._announce = announce
        self._reached: dict[str, bool] = {}

    @classmethod
    def of(cls, environment: Mapping[str, str], *, announce: Callable[[str], None]) -> Downloader:
        """Read CROSSDOCK_LAB_DOWNLOADS: a server to take releases from, or ``off``."""
        value = environment.get("CROSSDOCK_LAB_DOWNLOADS", "")
        return cls(base=value or None, enabled=value != "off", announce=announce)

    def reachable(self, release: Release) -> bool:
        """Tell whether the server of a release answers; asked once per server."""
        if not self._enabled:
            return False
        parts = urlsplit(release.located(self._base)[0])
        server = f"{parts.scheme}://{parts.netloc}"
        if server not in self._reached:
            self._reached[server] = _answers(server)
            if not self._reached[server]:
                self._announce(f"{server} is out of reach: releases on it are not downloaded")
        return self._reached[server]

    def obtain(self, release: Release, *, name: str, folder: Path) -> Path | None:
        """Download one program.

        Args:
            release: where it lies.
            name: its file name, also inside an archive.
            folder: where it goes.

        Returns:
            Its path, or None, announced with the reason, when it could not be taken.
        """
        url, checksum = release.located(self._base)
        begin = time.monotonic()
        self._announce(f"downloading {name}: {url}")
        try:
            expected = read_checksum(
                _read(checksum, limit=CHECKSUM_LIMIT), file=url.rpartition("/")[2]
            )
            content = verified(_read(url, limit=LIMIT), expected)
            program = extract(content, name) if url.endswith(".tar.gz") else content
        except DownloadError as error:
            self._announce(f"downloading {name}: not taken: {error}")
            return None
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        _place(path, program)
        self._announce(f"downloading {name}: done in {time.monotonic() - begin:.0f} s")
        return path


def verified(content: bytes, expected: str) -> bytes:
    """Give the content back when its SHA-256 is the expected one.

    Raises:
        DownloadError: it is another one.
    """
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise DownloadError(f"its SHA-256 is {actual}, published is {expected}")
    return content


def read_checksum(content: bytes, *, file: str) -> str:
    """Find the SHA-256 of a file in a published checksum file.

    Args:
        content: the checksum file, in one of the forms that Release tells.
        file: name of the file.

    Returns:
        64 lower-case hexadecimal digits.

    Raises:
        DownloadError: the file names no SHA-256 for it.
    """
    described = _described(content, file)
    if described is not None:
        return described
    for line in content.decode(errors="replace").splitlines():
        fields = line.split()
        if not fields or not re.fullmatch(r"[0-9a-fA-F]{64}", fields[0]):
            continue
        if len(fields) == 1 or fields[-1].lstrip("*").rpartition("/")[2] == file:
            return fields[0].lower()
    raise DownloadError(f"its published checksums have no SHA-256 for {file}")


def extract(content: bytes, name: str) -> bytes:
    """Take one program out of a gzipped tar archive.

    Raises:
        DownloadError: the archive is damaged or holds no such file.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:
                if member.isfile() and member.name.rpartition("/")[2] == name:
                    stream = archive.extractfile(member)
                    if stream is not None and member.size <= LIMIT:
                        return stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DownloadError(f"its archive is damaged: {error}") from error
    raise DownloadError(f"its archive holds no file {name}")


def _moved(url: str, base: str | None) -> str:
    if base is None:
        return url
    parts = urlsplit(url)
    return base.rstrip("/") + url.removeprefix(f"{parts.scheme}://{parts.netloc}")


def _described(content: bytes, file: str) -> str | None:
    """Find the digest of a file in GitHub's description of a release; None if it is none."""
    try:
        assets = json.loads(content)["assets"]
        digests = [str(each["digest"]) for each in assets if each["name"] == file]
    except (ValueError, KeyError, TypeError):
        return None
    return next((each.removeprefix("sha256:") for each in digests if each[:7] == "sha256:"), None)


def _answers(server: str) -> bool:
    request = urllib.request.Request(f"{server}/", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True  # it answers, whatever it thinks of this path
    except (OSError, http.client.HTTPException):
        return False


def _read(url: str, *, limit: int) -> bytes:
    deadline = time.monotonic() + TOTAL_SECONDS
    content = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=READ_SECONDS) as answer:
            while chunk := answer.read(1 << 20):
                content += chunk
                if len(content) > limit:
                    raise DownloadError(f"{url} is larger than {limit} bytes")
                if time.monotonic() > deadline:
                    raise DownloadError(f"{url} took longer than {TOTAL_SECONDS:.0f} s")
    except urllib.error.HTTPError as error:
        error.close()
        raise DownloadError(f"{url}: HTTP {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: {error}") from error
    return bytes(content)


def _place(path: Path, program: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(program)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o755)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
