import asyncio
import contextlib
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controller.registry import cache_folder
from controller.registry import shelves as shelves_module
from controller.registry.cache import (
    CacheUnavailable,
    DiskCache,
    NoCache,
    PackageCache,
    check_directory,
    keep_uncached,
)
from controller.registry.ledger import PINNED
from controller.registry.shelves import Shelves
from tests.registry.packages import check, facts_of, fill, key_of, store

NOBODY = 65534


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Work as somebody who owns nothing; root could write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def files(root: Path) -> list[str]:
    """All files of a cache but its locks."""
    locks = {"lock", "writing"}
    found = (path for path in root.rglob("*") if path.is_file() and path.name not in locks)
    return sorted(str(path.relative_to(root)) for path in found)


def contents(root: Path) -> list[Path]:
    return sorted((root / "v1" / "content").glob("*/*"))


async def is_whole(cache: PackageCache, number: int = 1) -> bool:
    package = await cache.get(key_of(number))
    if package is None:
        return False
    async with package:
        check(package, number)
    return True


async def test_what_is_stored_is_found(root, temporary):
    async with DiskCache(root, temporary=temporary) as cache:
        assert await cache.get(key_of()) is None
        await store(cache)
        assert await is_whole(cache)
        statistics = cache.statistics()
    assert (statistics.hits, statistics.misses, statistics.stores) == (1, 1, 1)
    assert (statistics.mode, statistics.entries) == ("rw", 1)
    assert statistics.size == sum(path.stat().st_size for path in contents(root))
    assert not list(temporary.iterdir())


async def test_what_is_stored_outlives_the_process(root):
    async with DiskCache(root) as cache:
        key = await store(cache)
        await cache.lease("uid", key)
    async with DiskCache(root) as cache:
        assert cache.statistics().entries == 1
        assert await is_whole(cache)
        assert await cache.release("uid") == [key]
        assert not await is_whole(cache)
    assert files(root) == []


async def test_a_package_is_stored_a_second_time_without_harm(root):
    async with DiskCache(root) as cache:
        await store(cache)
        before = files(root)
        await store(cache)
        assert files(root) == before
        assert await is_whole(cache)


async def test_t84_a_repository_finds_only_its_own_packages(root):
    async with DiskCache(root) as cache:
        await store(cache, repository="reg.io/acme/private")
        assert await cache.get(key_of(repository="reg.io/other/demo")) is None
        await store(cache, repository="reg.io/other/demo")
        assert len(contents(root)) == 2  # shared
        await cache.delete(key_of(repository="reg.io/acme/private"))
        package = await cache.get(key_of(repository="reg.io/other/demo"))
        assert package is not None
        package.close()


async def test_t82_names_never_form_paths(root):
    async with DiskCache(root) as cache:
        for name in ("../../x", "a/b", "x" * 300, "ü", ".", "", "a\0b"):
            key = await store(cache, repository=f"reg.io/{name}")
            await cache.lease(name, key)
    assert {path.name for path in root.parent.iterdir()} <= {"cache", "temporary"}
    leases = [path.name for path in (root / "v1" / "leases").iterdir()]
    assert len(leases) == 7
    async with DiskCache(root) as cache:
        for name in ("../../x", "a/b", "x" * 300, "ü", ".", "", "a\0b"):
            assert await cache.release(name) == [key_of(repository=f"reg.io/{name}")]


async def test_t79_a_reader_keeps_what_is_deleted_meanwhile(root):
    async with DiskCache(root) as cache:
        await store(cache, size=100_000)
        package = await cache.get(key_of())
        assert package is not None
        async with package:
            lines = package.objects()
            next(lines)
            await cache.delete(key_of())
            shutil.rmtree(root / "v1")
            assert len(list(lines)) == 99_999
            check(package, size=100_000)


async def test_deleting_what_is_not_there_is_no_error(root):
    async with DiskCache(root) as cache:
        await cache.delete(key_of())
        assert await cache.release("nobody") == []


async def test_the_last_owner_frees_a_package(root):
    async with DiskCache(root) as cache:
        key = await store(cache)
        for owner in ("a", "b", "b"):
            await cache.lease(owner, key)
        assert await cache.release("a") == []
        assert await is_whole(cache)
        assert await cache.release("b") == [key]
        assert files(root) == []


async def test_owners_that_no_longer_exist_are_released(root):
    async with DiskCache(root) as cache:
        for number, owner in enumerate(("a", "b", "c", "d", PINNED)):
            await cache.lease(owner, await store(cache, number))
    async with DiskCache(root) as cache:
        await cache.lease("d", key_of(3))  # younger than the list of those that exist
        await cache.lease("e", await store(cache, 5))
        assert await cache.release_others({"b"}) == [key_of(0), key_of(2)]
        assert cache.statistics().entries == 4
        assert await cache.release_others(set()) == [key_of(1)]
        assert await cache.release_others(set()) == []
        assert await is_whole(cache, 4)


async def test_a_failed_release_is_found_again(root, monkeypatch):
    async with DiskCache(root) as cache:
        key = await store(cache)
        await cache.lease("uid", key)

        def refuse(_self, _key, _contents):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(Shelves, "remove", refuse)
            with pytest.raises(CacheUnavailable, match="cannot remove a package: Input/output"):
                await cache.release("uid")
        assert await cache.release("uid") == [key]
        assert files(root) == []


async def test_a_folder_that_is_gone_counts_as_evicted(root):
    async with DiskCache(root) as cache:
        key = await store(cache)
        await cache.lease("uid", key)
        shutil.rmtree(root)
        assert await cache.get(key) is None
        assert await cache.release("uid") == [key]
        async with cache.ingest() as staging:
            fill(staging)
            with pytest.raises(CacheUnavailable, match="cannot store a package: No such file"):
                await cache.store(key, staging, facts_of())
            async with await keep_uncached(key, staging, facts_of()) as package:
                check(package)
    assert not root.exists()


def flip(path: Path, position: int) -> None:
    path.chmod(0o644)
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] ^= 0xFF
    path.write_bytes(raw)


@pytest.mark.parametrize("which", [0, 1, "record"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "link", "folder"])
async def test_t72_a_damaged_entry_is_a_miss_and_is_stored_anew(root, which, damage):
    async with DiskCache(root) as cache:
        await store(cache)
        [record] = (root / "v1" / "records").glob("*/*")
        path = record if which == "record" else contents(root)[which]
        whole = path.read_bytes()
        if damage == "flip":
            flip(path, random.Random(which).randrange(len(whole)))
        elif damage == "truncate":
            path.chmod(0o644)
            path.write_bytes(whole[:-1])
        else:
            path.unlink()
            if damage == "empty":
                path.write_bytes(b"")
            elif damage == "link":
                (root / "copy").write_bytes(whole)
                path.symlink_to(root / "copy")
            elif damage == "folder":
                path.mkdir()
        assert await cache.get(key_of()) is None
        await store(cache)
        assert await is_whole(cache)
        assert cache.statistics().entries == 1


async def test_t73_a_record_under_another_name_is_not_believed(root):
    async with DiskCache(root) as cache:
        await store(cache)
        [record] = (root / "v1" / "records").glob("*/*")
        other = record.with_name(key_of(2).digest.replace(":", "-") + ".json")
        record.rename(other)
        assert await cache.get(key_of(2)) is None
        record.parent.mkdir(exist_ok=True)
    async with DiskCache(root) as cache:
        assert cache.statistics().entries == 0


async def test_a_new_process_clears_what_was_left_half_done(root):
    async with DiskCache(root) as cache:
        await store(cache)
    (root / "v1" / "ingest" / "left").write_bytes(b"x")
    (root / "v1" / "ingest" / "folder").mkdir()
    (root / "v1" / "ingest" / "folder" / "file").write_bytes(b"x")
    orphan = root / "v1" / "content" / "00" / ("0" * 64)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"x")
    (root / "v1" / "records" / "x").mkdir()
    (root / "v1" / "records" / "x" / "broken.json").write_bytes(b"x")
    async with DiskCache(root) as cache:
        [aside] = (root / "v1" / "quarantine").iterdir()
        assert aside.name.endswith("-broken.json")
        assert len(files(root)) == 4
        assert await is_whole(cache)
        assert cache.statistics().damaged == 1


async def test_another_process_that_lives_keeps_its_files(root):
    async with DiskCache(root) as first:
        await store(first)
        part = root / "v1" / "ingest" / "being-written"
        part.write_bytes(b"x")
        async with DiskCache(root) as second:
            assert part.exists()
            assert await is_whole(second)
            await store(second, 2)
        assert await is_whole(first, 2)


async def test_t78_many_store_and_read_at_once(root):
    async with DiskCache(root) as cache:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(6):
                for number in range(5):
                    tasks.create_task(store(cache, number))
                    tasks.create_task(is_whole(cache, number))
        assert cache.statistics().entries == 5
        assert all([await is_whole(cache, number) for number in range(5)])
    assert len(files(root)) == 15


async def test_the_oldest_that_nobody_needs_makes_room(root):
    async with DiskCache(root) as cache:
        await store(cache, 1)
        one = cache.statistics().size
    async with DiskCache(root, max_bytes=3 * one + one // 2) as cache:
        await cache.lease("uid", key_of(1))
        for number in (2, 3):
            await store(cache, number)
        await is_whole(cache, 2)
        await store(cache, 4)
        assert [await is_whole(cache, number) for number in (1, 2, 3, 4)] == [
            True,
            True,
            False,
            True,
        ]
        assert cache.statistics().size <= 3 * one + one // 2
        assert cache.statistics().evictions == 1


async def test_a_package_beyond_the_budget_is_used_uncached(root):
    async with DiskCache(root, max_bytes=10) as cache, cache.ingest() as staging:
        fill(staging)
        with pytest.raises(CacheUnavailable, match="cannot store a package: it may hold 10 bytes"):
            await cache.store(key_of(), staging, facts_of())
        async with await keep_uncached(key_of(), staging, facts_of()) as package:
            check(package)
        assert files(root) == []
        assert cache.statistics().failures == 1


STEPS = ["pack", "commit", "write"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize("step", STEPS)
async def test_t74_trouble_while_storing_leaves_nothing_and_harms_nobody(
    root, temporary, monkeypatch, step, code
):
    async with DiskCache(root, temporary=temporary) as cache:
        await store(cache, 1)
        await cache.lease("uid", key_of(1))
        before = files(root)
        original = getattr(Shelves, step)

        def fail(self, *arguments):
            if step != "write":
                with contextlib.suppress(OSError):
                    original(self, *arguments)
            raise OSError(code, os.strerror(code))

        async with cache.ingest() as staging:
            fill(staging, 2)
            with monkeypatch.context() as patch:
                patch.setattr(Shelves, step, fail)
                with pytest.raises(CacheUnavailable, match=os.strerror(code)):
                    await cache.store(key_of(2), staging, facts_of(2))
            async with await keep_uncached(key_of(2), staging, facts_of(2)) as package:
                check(package, 2)
        assert await is_whole(cache, 1)
        if step == "pack":
            assert files(root) == before
    async with DiskCache(root) as cache:  # content without a record goes at the next start
        assert await is_whole(cache, 1)
        if step == "write":
            assert files(root) == before


async def test_t74_a_full_disk_is_freed_of_what_nobody_needs(root, monkeypatch):
    async with DiskCache(root) as cache:
        await store(cache, 1)
        await store(cache, 2)
        await cache.lease("uid", key_of(2))
        original = Shelves.commit

        def fail_once(self, *arguments):
            monkeypatch.setattr(Shelves, "commit", original)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Shelves, "commit", fail_once)
        await store(cache, 3)
        assert [await is_whole(cache, number) for number in (1, 2, 3)] == [False, True, True]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_t74_a_disk_that_is_really_full(small_disk, temporary, monkeypatch):
    monkeypatch.setattr(cache_folder, "DISK_SHARE", 100.0)
    async with DiskCache(small_disk, temporary=temporary) as cache:
        await store(cache, 1)
        await cache.lease("uid", key_of(1))
        async with cache.ingest() as staging:
            fill(staging, 2)
            staging.objects.write_bytes(random.Random(1).randbytes(200_000))
            with pytest.raises(CacheUnavailable, match="No space left on device"):
                await cache.store(key_of(2), staging, facts_of(2))
        assert await is_whole(cache, 1)
        (small_disk / "ballast").write_bytes(b"")
        with contextlib.suppress(OSError), (small_disk / "ballast").open("wb") as ballast:
            ballast.write(bytes(100_000))
        await cache.lease("other", key_of(1))  # cannot be noted; is no error
        assert await cache.release("uid") == []
        assert await cache.release("other") == [key_of(1)]


async def test_t74_a_full_disk_at_start_may_have_room_later(small_disk, temporary):
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb") as ballast:
        ballast.write(bytes(100_000))
    async with DiskCache(small_disk, temporary=temporary) as cache:
        assert cache.mode == "rw"
        assert await cache.get(key_of()) is None
        async with cache.ingest() as staging:
            fill(staging)
            with pytest.raises(CacheUnavailable):
                await cache.store(key_of(), staging, facts_of())
        (small_disk / "ballast").unlink()
        await store(cache)
        assert await is_whole(cache)


async def test_t75_a_read_only_folder_is_read(root, temporary, tmp_path):
    async with DiskCache(root) as cache:
        await store(cache)
        await cache.lease("uid", key_of())
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in (*tmp_path.parents, tmp_path):
        if path.stat().st_mode & 0o001 == 0:
            path.chmod(path.stat().st_mode | 0o011)
    temporary.chmod(0o777)
    before = files(root)
    with without_rights():
        assert check_directory(root) is None
        async with DiskCache(root, temporary=temporary) as cache:
            assert cache.mode == "ro"
            assert "cannot be written: Permission denied" in (cache.warning or "")
            assert await is_whole(cache)
            async with cache.ingest() as staging:
                fill(staging, 2)
                with pytest.raises(CacheUnavailable, match="cannot be written"):
                    await cache.store(key_of(2), staging, facts_of(2))
                async with await keep_uncached(key_of(2), staging, facts_of(2)) as package:
                    check(package, 2)
            await cache.lease("other", key_of())
            await cache.release("other")
            assert await cache.release("uid") == [key_of()]
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755)
    assert files(root) == before


async def test_t75_a_folder_that_cannot_be_read_is_named_in_one_line(root, tmp_path):
    for path in (*tmp_path.parents, tmp_path):
        if path.stat().st_mode & 0o001 == 0:
            path.chmod(path.stat().st_mode | 0o011)
    root.chmod(0o000)
    try:
        with without_rights():
            text = check_directory(root)
            with pytest.raises(CacheUnavailable, match="cannot read cache folder"):
                await DiskCache(root).__aenter__()
    finally:
        root.chmod(0o755)
    assert text == (
        f"cannot read cache folder {root}: Permission denied: give the manager the right"
    )


def test_t75_what_is_no_folder_is_named_in_one_line(tmp_path):
    assert check_directory(tmp_path) is None
    (tmp_path / "file").write_text("x")
    assert check_directory(tmp_path / "gone") == (
        f"cache folder {tmp_path}/gone does not exist: create it, or name another"
    )
    assert check_directory(tmp_path / "file") == (
        f"cache folder {tmp_path}/file is a file: name a folder"
    )
    below = check_directory(tmp_path / "file" / "below")
    assert below == f"cannot use cache folder {tmp_path}/file/below: Not a directory"


async def test_t80_a_linked_root_is_used(root, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(root)
    async with DiskCache(link) as cache:
        await store(cache)
        assert await is_whole(cache)


async def test_t87_other_versions_are_left_alone(root):
    (root / "v0").mkdir()
    (root / "v0" / "file").write_text("x")
    (root / "flat.gz").write_text("x")
    async with DiskCache(root) as cache:
        await store(cache)
        await cache.delete(key_of())
    assert files(root) == ["flat.gz", "v0/file"]


async def test_t78_two_processes_store_the_same_at_once(root):
    code = (
        "import asyncio, sys, pathlib\n"
        "from controller.registry.cache import DiskCache\n"
        "from tests.registry.packages import store\n"
        "async def main():\n"
        "    async with DiskCache(pathlib.Path(sys.argv[1])) as cache:\n"
        "        for _ in range(20):\n"
        "            await store(cache, 1)\n"
        "asyncio.run(main())\n"
    )
    place = Path(__file__).parents[2]
    async with asyncio.timeout(60):
        running = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(root), cwd=place)
            for _ in range(2)
        ]
        assert [await process.wait() for process in running] == [0, 0]
    async with DiskCache(root) as cache:
        assert await is_whole(cache)
        assert cache.statistics().entries == 1


async def test_no_cache_keeps_nothing(temporary):
    async with NoCache(temporary=temporary) as cache:
        assert await cache.get(key_of()) is None
        key = await store(cache)
        await cache.lease("uid", key)
        assert await cache.get(key) is None
        assert await cache.release("uid") == []
        await cache.delete(key)
        async with cache.ingest() as staging:
            fill(staging)
            package = await cache.store(key, staging, facts_of())
        assert not list(temporary.iterdir())
        async with package:
            check(package)
        statistics = cache.statistics()
    assert (statistics.mode, statistics.misses, statistics.entries) == ("off", 2, 0)


def test_both_caches_are_what_the_stages_know(root):
    caches: list[PackageCache] = [DiskCache(root), NoCache()]
    assert len(caches) == 2


async def test_staging_is_in_the_cache_where_nothing_else_can_be_written(root, tmp_path):
    async with DiskCache(root, temporary=tmp_path / "gone") as cache:
        async with cache.ingest() as staging:
            assert staging.folder.parent == root / "v1" / "ingest"
        await store(cache)
        assert await is_whole(cache)


async def test_damage_that_cannot_be_removed_is_still_a_miss(root, monkeypatch):
    async with DiskCache(root) as cache:
        await store(cache)
        flip(contents(root)[0], 3)

        def refuse(_self, _key, _contents):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Shelves, "remove", refuse)
        assert await cache.get(key_of()) is None
        assert cache.statistics().damaged == 1


async def test_a_disk_that_cannot_be_read_is_a_miss(root, monkeypatch):
    async with DiskCache(root) as cache:
        await store(cache)

        def refuse(_file):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(shelves_module, "hash_file", refuse)
        assert await cache.get(key_of()) is None
        assert cache.statistics().failures == 1
        monkeypatch.undo()
        assert await is_whole(cache)


class CacheMachine(RuleBasedStateMachine):
    """The disk cache against a dictionary, restarts and damage included."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.loop = asyncio.new_event_loop()
        self.stored: set[int] = set()
        self.leases: dict[str, set[int]] = {}
        self.cache = DiskCache(self.root)
        self.run(self.cache.__aenter__())

    def run(self, work):
        return self.loop.run_until_complete(work)

    def teardown(self):
        self.run(self.cache.__aexit__(None, None, None))
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()

    @rule(number=st.integers(0, 3))
    def store(self, number):
        self.run(store(self.cache, number))
        self.stored.add(number)

    @rule(number=st.integers(0, 3))
    def get(self, number):
        assert self.run(is_whole(self.cache, number)) is (number in self.stored)

    @rule(number=st.integers(0, 3))
    def delete(self, number):
        self.run(self.cache.delete(key_of(number)))
        self.stored.discard(number)

    @rule(number=st.integers(0, 3), owner=st.sampled_from("ab"))
    def lease(self, number, owner):
        self.run(self.cache.lease(owner, key_of(number)))
        self.leases.setdefault(owner, set()).add(number)

    @rule(owner=st.sampled_from("ab"))
    def release(self, owner):
        mine = self.leases.pop(owner, set())
        freed = mine - set().union(*self.leases.values())
        assert set(self.run(self.cache.release(owner))) == {key_of(number) for number in freed}
        self.stored -= freed

    @rule()
    def restart(self):
        self.run(self.cache.__aexit__(None, None, None))
        self.cache = DiskCache(self.root)
        self.run(self.cache.__aenter__())

    @rule(number=st.integers(0, 3), position=st.integers(0, 1000))
    def damage(self, number, position):
        if number not in self.stored:
            return
        name = key_of(number).digest.replace(":", "-")
        [record] = (self.root / "v1" / "records").glob(f"*/{name}.json")
        flip(record, position)
        assert self.run(self.cache.get(key_of(number))) is None
        self.stored.discard(number)

    @invariant()
    def the_count_is_right(self):
        assert self.cache.statistics().entries == len(self.stored)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
