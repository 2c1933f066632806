"""Ports of a lab: reserved on loopback so that labs side by side never take each other's."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import struct
import tempfile
from pathlib import Path

LOWEST = 10_000
HIGHEST = 65_000
ATTEMPTS = 400


class NoPortFreeError(RuntimeError):
    """No port could be reserved within the allowed attempts."""


def candidate_range(ephemeral: tuple[int, int]) -> range:
    """Choose the ports to draw from: the larger part outside the kernel's ephemeral range.

    A port outside that range is never handed to an outgoing connection, so it stays free between
    the end of a component and its next start.

    Args:
        ephemeral: first and last port that the kernel gives to outgoing connections.

    Returns:
        The range of candidates; the whole span when nothing of use lies outside.
    """
    below = range(LOWEST, min(ephemeral[0], HIGHEST))
    above = range(max(ephemeral[1] + 1, LOWEST), HIGHEST)
    best = max(below, above, key=len)
    return best if len(best) >= ATTEMPTS else range(LOWEST, HIGHEST)


def ephemeral_range() -> tuple[int, int]:
    """Read the kernel's range of ports for outgoing connections, IANA's where it tells none."""
    try:
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except (OSError, ValueError):
        return 49_152, 65_535
    return int(first), int(last)


def is_free(port: int) -> bool:
    """Tell whether a server can listen on the port of 127.0.0.1 at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


class PortLease:
    """Ports that belong to this lease until it is closed or its process ends.

    All leases of this user lock bytes of one file, each byte a port; the kernel drops the locks
    with the process, however it ends.

    Args:
        file: the lock file in place of the user's own.
    """

    def __init__(self, file: Path | None = None) -> None:
        default = Path(tempfile.gettempdir()) / f"crossdock-lab-ports-{os.getuid()}.lock"
        self._descriptor = os.open(file or default, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._candidates = candidate_range(ephemeral_range())
        self._mine: set[int] = set()

    def reserve(self) -> int:
        """Reserve one more port.

        Returns:
            A port of 127.0.0.1 that is free and that no other lease holds.

        Raises:
            NoPortFreeError: every candidate that was tried is taken.
        """
        for _ in range(ATTEMPTS):
            port = random.choice(self._candidates)
            # A byte that this lease has locked would be granted again.
            if port not in self._mine and self._lock(port) and is_free(port):
                self._mine.add(port)
                return port
        message = f"no free port on 127.0.0.1 among {ATTEMPTS} tried in {self._candidates}"
        raise NoPortFreeError(message)

    def close(self) -> None:
        """Give all ports back."""
        os.close(self._descriptor)

    def _lock(self, port: int) -> bool:
        # Locks of the open file, not of the process: two leases of one process exclude each other.
        wish = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, port, 1, 0)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, wish)
        except (BlockingIOError, PermissionError):
            return False
        return True
