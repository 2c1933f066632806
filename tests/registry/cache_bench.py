"""What the cache takes: reading a folder of 10,000 packages, finding one, storing one."""

import asyncio
import hashlib
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from controller.registry.cache import DiskCache
from controller.registry.cached import Content, Record
from controller.registry.shelves import Shelves
from tests.registry.packages import facts_of, key_of, store

ENTRIES = 10_000
REPOSITORIES = 500


@dataclass(frozen=True)
class Figure:
    """One row: what was done, and the seconds of the clock and of the processor it took."""

    what: str
    entries: int
    seconds: float
    cpu_seconds: float


def fill_folder(root: Path, count: int) -> None:
    """Make a cache folder with so many packages; content that is never read is one byte."""
    shelves = Shelves(root)
    shelves.open()
    for number in range(count):
        key = key_of(number, f"reg.io/acme/p{number % REPOSITORIES}")
        names = [hashlib.sha256(f"{form}{number}".encode()).hexdigest() for form in "so"]
        stream, objects = (Content("a" * 64, 10, name, 1, "gzip") for name in names)
        record = Record(key, facts_of(number), stream, objects)
        for content in (stream, objects):
            path = shelves.content_path(content)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
        path = shelves.record_path(key)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(record.encode())
    shelves.close()


async def timed(root: Path) -> list[Figure]:
    figures = []
    clock, cpu = time.perf_counter(), time.process_time()

    def figure(what: str, entries: int) -> None:
        nonlocal clock, cpu
        now, used = time.perf_counter(), time.process_time()
        figures.append(Figure(what, entries, round(now - clock, 3), round(used - cpu, 3)))
        clock, cpu = time.perf_counter(), time.process_time()

    async with DiskCache(root) as cache:
        figure("recovery scan, alone", ENTRIES)
        assert cache.statistics().entries == ENTRIES
        async with DiskCache(root):
            figure("scan beside another process", ENTRIES)
        figure("close", 0)
        for number in range(100):
            await store(cache, ENTRIES + number)
        figure("100 small packages stored", 100)
        for number in range(1000):
            package = await cache.get(key_of(ENTRIES + number % 100))
            assert package is not None
            package.close()
        figure("1,000 packages found", 1000)
        await cache.sweep()
        figure("sweep", ENTRIES + 100)
    return figures


def measure() -> list[Figure]:
    """Return the figures of a folder of 10,000 packages."""
    with tempfile.TemporaryDirectory() as folder:
        fill_folder(Path(folder), ENTRIES)
        return asyncio.run(timed(Path(folder)))


if __name__ == "__main__":
    for row in measure():
        sys.stdout.write(f"{row}\n")
