"""Faults in the file operations of the cache: each can fail, or be the last thing a process does.

As a program (``python -m tests.registry.cache_faults FOLDER``) it plays one scenario again and
again, each time in a process of its own that is killed before its next file operation, and prints
one JSON line for each: the operation that did not happen.
"""

import asyncio
import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import orjson

from controller.registry.cache import DiskCache
from tests.registry.packages import key_of, store

Act = Callable[[int, str], None]
PATCHED = ("mkdir", "replace", "rename", "unlink", "fsync", "fchmod", "utime", "posix_fallocate")
PLACES = ("ingest", "content", "records", "leases", "quarantine")


def place_of(target: object) -> str:
    """What of the cache a path or a descriptor is in; empty for what is elsewhere."""
    if isinstance(target, int):
        target = Path(f"/proc/self/fd/{target}").readlink()
    parts = Path(os.fspath(target)).parts  # type: ignore[call-overload]  # paths of every form
    if "v1" not in parts:
        return ""
    below = parts[parts.index("v1") + 1 :]
    return below[0] if below else "v1"


class Operations:
    """Calls something before each operation that changes the cache's folder."""

    def __init__(self, act: Act) -> None:
        self.log: list[str] = []
        self._act = act

    def note(self, what: str, target: object) -> None:
        place = place_of(target)
        if place:
            self.log.append(f"{what} {place}")
            self._act(len(self.log), self.log[-1])

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        originals = {name: getattr(os, name) for name in PATCHED}
        opened = pathlib.Path.open
        for name, original in originals.items():
            setattr(os, name, self._counted(name, original))
        pathlib.Path.open = self._opened(opened)  # type: ignore[method-assign]  # in tests only
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(os, name, original)
            pathlib.Path.open = opened  # type: ignore[method-assign]  # as above

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *more: Any, **options: Any) -> Any:
            where = more[0] if name in {"replace", "rename"} else target
            self.note(name, where)
            return original(target, *more, **options)

        return call

    def _opened(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
            if "x" not in mode:
                return original(path, mode, *more, **options)
            self.note("create", path)
            return Written(original(path, mode, *more, **options), self, path)

        return call


class Written:
    """A file whose writes count."""

    def __init__(self, file: Any, operations: Operations, path: Path) -> None:
        self._file = file
        self._operations = operations
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._operations.note("write", self._path)
        self._file.write(data[half:])
        return len(data)


async def scenario(root: Path, operations: Operations) -> None:
    """One package is there and needed; a second comes, is needed, and goes."""
    async with DiskCache(root) as cache:
        await store(cache, 1)
        await cache.lease("old", key_of(1))
        with operations.patched():
            await cache.lease("new", key_of(2))
            await store(cache, 2)
            await cache.release("new")


def die(fatal: int, told: int) -> Act:
    def act(number: int, what: str) -> None:
        if number == fatal:
            os.write(told, what.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def play(root: Path, fatal: int) -> tuple[str, int]:
    """Play the scenario in another process; return what it did not do any more, and its end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        asyncio.run(scenario(root, Operations(die(fatal, writing))))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        what = pipe.read().decode()
    return what, os.waitpid(child, 0)[1]


def main(folder: Path) -> int:
    for number in range(1, 1000):
        root = folder / str(number)
        root.mkdir()
        what, end = play(root, number)
        line = {"step": number, "operation": what, "killed": end == signal.SIGKILL}
        sys.stdout.write(orjson.dumps(line).decode() + "\n")
        sys.stdout.flush()
        if not line["killed"]:
            return end
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
