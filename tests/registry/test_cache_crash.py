"""T77 and T74: a process that dies, or an operation that fails, at each step of the protocol."""

import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from controller.registry.cache import (
    CachedPackage,
    CacheUnavailable,
    DiskCache,
    Staging,
    keep_uncached,
)
from tests.registry.cache_faults import Operations
from tests.registry.packages import check, facts_of, fill, key_of, store

PLACE = Path(__file__).parents[2]


def files(root: Path) -> list[str]:
    """All files of a cache but its locks."""
    home = root / "v1"
    found = (path for path in home.rglob("*") if path.is_file())
    return sorted(str(p.relative_to(home)) for p in found if p.name not in {"lock", "writing"})


async def is_whole(cache: DiskCache, number: int) -> bool:
    package = await cache.get(key_of(number))
    if package is None:
        return False
    async with package:
        check(package, number)
    return True


@pytest.fixture(scope="module")
def crashes(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """Folders of processes that were killed, and what each did not do any more."""
    folder = tmp_path_factory.mktemp("crashes")
    temporary = tmp_path_factory.mktemp("temporary")
    done = subprocess.run(
        [sys.executable, "-m", "tests.registry.cache_faults", str(folder)],
        capture_output=True,
        timeout=120,
        check=False,
        cwd=PLACE,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert done.returncode == 0, done.stderr
    *steps, last = map(orjson.loads, done.stdout.splitlines())
    assert not last["killed"]
    return folder, steps


async def recovered(root: Path) -> tuple[bool, bool]:
    """Open what a crash left; tell whether package 2 is whole, and whether it is leased."""
    async with DiskCache(root) as cache:
        whole = await is_whole(cache, 2)
        leased = (root / "v1" / "leases" / "new.json").exists()
        assert await is_whole(cache, 1)
        entries = cache.statistics().entries
        assert entries == 1 + whole
        assert cache.statistics().damaged == 0
        assert len(list((root / "v1" / "content").glob("*/*"))) == 2 * entries
        assert not list((root / "v1" / "ingest").iterdir())
        assert await cache.release_others({"old", "new"}) == []
        await store(cache, 2)
        await cache.lease("new", key_of(2))
        assert await cache.release("new") == [key_of(2)]
        assert await cache.release("old") == [key_of(1)]
    assert files(root) == []
    return whole, leased


async def test_t77_killed_at_any_step_a_package_is_whole_or_absent(crashes):
    """The crash matrix: killed before each operation in turn, then opened again."""
    folder, steps = crashes
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    states = [await recovered(folder / str(step["step"])) for step in steps]
    whole = [state[0] for state in states]
    # Absent until its record has its name, whole from then on, absent once that is removed.
    assert [sum(1 for _ in group) for _, group in itertools.groupby(whole)][1:-1]
    operations = [step["operation"] for step in steps]
    appears, goes = operations.index("replace records"), operations.index("unlink records")
    assert whole == [appears < number <= goes for number in range(len(steps))]
    # The lease is there before the package, and goes after it.
    leased = [state[1] for state in states]
    begins, ends = operations.index("replace leases"), operations.index("unlink leases")
    assert leased == [begins < number <= ends for number in range(len(steps))]
    assert begins < appears < goes < ends


def test_t77_every_file_is_lasting_before_its_name_and_its_name_before_the_record(crashes):
    """The order that power may fail in: file, its name, the folder of the name; record last."""
    operations = [step["operation"] for step in crashes[1]]
    for place in ("content", "records", "leases"):
        for number, operation in enumerate(operations):
            if operation == f"replace {place}":
                before = [o for o in operations[:number] if o.endswith("ingest")]
                assert before[-1] == "fsync ingest"
                after = [o for o in operations[number + 1 :] if not o.startswith("unlink")]
                assert after[0] == f"fsync {place}"
    record = operations.index("replace records")
    assert operations[:record].count("replace content") == 2
    assert max(n for n, o in enumerate(operations) if o == "fsync content") < record
    assert operations.index("unlink records") < operations.index("unlink content")


def failing(number: int, code: int, *, lasting: bool) -> Operations:
    def act(now: int, what: str) -> None:
        wrong = now >= number if lasting else now == number
        if wrong and not what.startswith("unlink"):
            raise OSError(code, os.strerror(code))

    return Operations(act)


async def stored_or_not(cache: DiskCache, staging: Staging) -> CachedPackage:
    try:
        return await cache.store(key_of(3), staging, facts_of(3))
    except CacheUnavailable as error:
        text = str(error)
    assert "cannot store a package: " in text
    assert "give it space and write permission" in text
    return await keep_uncached(key_of(3), staging, facts_of(3))


async def stored_with_fault(root: Path, operations: Operations) -> bool:
    """Store package 3 while operations fail; tell whether it is in the cache."""
    async with DiskCache(root) as cache:
        await store(cache, 1)
        await cache.lease("uid", key_of(1))
        await store(cache, 2)  # nobody needs it
        async with cache.ingest() as staging:
            fill(staging, 3)
            with operations.patched():
                package = await stored_or_not(cache, staging)
            async with package:
                check(package, 3)
                cached = package.cached
        assert await is_whole(cache, 1)
        assert await is_whole(cache, 3) is cached
        assert not list((root / "v1" / "ingest").iterdir())
    async with DiskCache(root) as cache:
        assert await is_whole(cache, 1)
        assert await is_whole(cache, 3) is cached
        assert cache.statistics().damaged == 0
        assert len(files(root)) == 3 * cache.statistics().entries + 1
    return cached


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE])
async def test_t74_each_operation_that_fails_leaves_the_cache_as_it_was(tmp_path, code, lasting):
    whole = Operations(lambda _number, _what: None)
    (tmp_path / "0").mkdir()
    assert await stored_with_fault(tmp_path / "0", whole)
    outcomes = []
    for number in range(1, len(whole.log) + 1):
        root = tmp_path / str(number)
        root.mkdir()
        cached = await stored_with_fault(root, failing(number, code, lasting=lasting))
        outcomes.append((whole.log[number - 1], cached))
    full = code in {errno.ENOSPC, errno.EDQUOT}
    tried = [cached for what, cached in outcomes if not what.startswith("unlink")]
    if lasting:
        assert not any(tried[:-1])
    else:
        assert all(tried) is full  # room is made once, from what nobody needs


async def test_a_packed_file_that_changed_on_its_way_is_not_stored(tmp_path, monkeypatch):
    async with DiskCache(tmp_path) as cache, cache.ingest() as staging:
        fill(staging)
        original = cache._shelves.pack

        def lying(source, part, encoding):
            content = original(source, part, encoding)
            part.write_bytes(b"other")
            return content

        monkeypatch.setattr(cache._shelves, "pack", lying)
        with pytest.raises(CacheUnavailable, match="does not match its hash"):
            await cache.store(key_of(), staging, facts_of())
        assert files(tmp_path) == []
