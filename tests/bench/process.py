"""What /proc tells about a process: memory, descriptors, threads, CPU time and wake-ups."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
NANOSECONDS = 1e9


class ProcessGoneError(Exception):
    """The process has ended."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a process.

    Attributes:
        rss_mib: resident memory now, MiB.
        peak_mib: the most it has been, MiB.
        descriptors: open file descriptors.
        threads: threads.
        cpu_seconds: time on a processor so far, all threads, seconds.
        wakeups: how often a thread has given up its processor to wait, so far, of living threads.
    """

    rss_mib: float
    peak_mib: float
    descriptors: int
    threads: int
    cpu_seconds: float
    wakeups: int


def read(pid: int) -> Reading:
    """Look at a process.

    Raises:
        ProcessGoneError: there is none of that id.
    """
    root = Path(f"/proc/{pid}")
    try:
        status = _fields(root / "status")
        descriptors = len(list((root / "fd").iterdir()))
        return Reading(
            rss_mib=_kib(status, "VmRSS") / 1024,
            peak_mib=_kib(status, "VmHWM") / 1024,
            descriptors=descriptors,
            threads=int(status["Threads"]),
            cpu_seconds=run_seconds(pid),
            wakeups=_wakeups(root),
        )
    except (OSError, KeyError) as error:
        raise ProcessGoneError(f"process {pid} has ended: {error}") from error


def run_seconds(pid: int) -> float:
    """Return time on a processor of all living threads, seconds, to the nanosecond."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            total += int((task / "schedstat").read_text().split()[0])
    return total / NANOSECONDS


def process_tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [pid]
    if children.exists():
        for child in children.read_text().split():
            found += process_tree(int(child))
    return found


def peak_mib(pid: int) -> float:
    """Return the sum of the peaks of a process and its living descendants, MiB."""
    total = 0.0
    for one in process_tree(pid):
        with contextlib.suppress(OSError):
            total += _kib(_fields(Path(f"/proc/{one}/status")), "VmHWM") / 1024
    return total


def cpu_seconds(pid: int) -> float:
    """Return CPU time of a process and its ended children, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[index]) for index in (11, 12, 13, 14)) / TICKS


def _fields(path: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _kib(status: dict[str, str], name: str) -> int:
    return int(status.get(name, "0 kB").split()[0])


def _wakeups(root: Path) -> int:
    total = 0
    for task in (root / "task").iterdir():
        with contextlib.suppress(OSError, KeyError):
            total += int(_fields(task / "status")["voluntary_ctxt_switches"])
    return total
