"""Bad input of the cache folder, each with its number in the catalogue of threats."""

import asyncio
import contextlib
import errno
import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controller.registry import cache_disk, cache_folder, cache_lock
from controller.registry.cache import CacheUnavailable, DiskCache, keep_uncached
from controller.registry.cache_quarantine import BYTES_MAX, FILES_MAX, Quarantine
from controller.registry.cache_scan import record_name
from controller.registry.cache_seed import SEED_BYTES_MAX, seed_name
from controller.registry.cached import CacheKey
from controller.registry.shelves import Shelves
from tests.registry.packages import check, facts_of, fill, key_of, store

PLACE = Path(__file__).parents[2]
NOP = "xpkg.crossplane.io/crossplane-contrib/provider-nop"
NOP_DIGEST = f"sha256:552a394a{'0' * 56}"


def files(root: Path) -> list[str]:
    found = (path for path in root.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(str(p.relative_to(root)) for p in found if p.name not in {"lock", "writing"})


async def is_whole(cache: DiskCache, number: int = 1) -> bool:
    package = await cache.get(key_of(number))
    if package is None:
        return False
    async with package:
        check(package, number)
    return True


def flip(path: Path) -> None:
    path.chmod(0o644)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)


async def test_t72_what_is_damaged_is_set_aside_and_counted(tmp_path):
    async with DiskCache(tmp_path) as cache:
        await store(cache, 1)
        await store(cache, 2)
        [first, *_] = sorted((tmp_path / "v1" / "records").glob("*/*"))
        stream = (await asyncio.to_thread(cache._shelves.record, key_of(1))).stream
        flip(cache._shelves.content_path(stream))
        assert not await is_whole(cache, 1)
        [aside] = (tmp_path / "v1" / "quarantine").iterdir()
        assert aside.name.endswith(stream.stored_sha256)
        assert not first.exists()
        assert await is_whole(cache, 2)
        statistics = cache.statistics()
        assert (statistics.damaged, statistics.misses, statistics.entries) == (1, 1, 1)
        await store(cache, 1)
        assert await is_whole(cache, 1)


async def test_t72_what_was_stored_anew_meanwhile_is_not_set_aside(tmp_path, monkeypatch):
    async with DiskCache(tmp_path) as cache:
        await store(cache, 1)
        await cache._set_aside(key_of(1))
        assert await is_whole(cache, 1)
        assert not list((tmp_path / "v1").glob("quarantine/*"))


def test_t72_the_quarantine_is_bounded(tmp_path, monkeypatch):
    quarantine = Quarantine(tmp_path / "quarantine")
    for number in range(FILES_MAX + 5):
        path = tmp_path / f"file{number}"
        path.write_bytes(b"x" * 10)
        quarantine.put(path)
    names = sorted(path.name.rpartition("-")[2] for path in quarantine.folder.iterdir())
    assert len(names) == FILES_MAX
    assert "file4" not in names
    assert "file5" in names
    assert quarantine.size() == 10 * FILES_MAX
    with (tmp_path / "large").open("wb") as large:
        large.truncate(BYTES_MAX)
    quarantine.put(tmp_path / "large")
    assert quarantine.size() == BYTES_MAX
    quarantine.put(tmp_path / "gone")
    quarantine.trim(0)
    assert quarantine.size() == 0


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
async def test_t75_a_folder_that_cannot_be_written_is_read_with_one_warning(
    tmp_path, monkeypatch, code
):
    async with DiskCache(tmp_path) as cache:
        await store(cache)
    before = files(tmp_path)
    monkeypatch.setattr(cache_disk, "probe", lambda _root: OSError(code, os.strerror(code)))
    async with DiskCache(tmp_path) as cache:
        assert cache.statistics().mode == "ro"
        assert cache.warning == f"cache folder {tmp_path} cannot be written: {os.strerror(code)}"
        assert await is_whole(cache)
        async with cache.ingest() as staging:
            fill(staging, 2)
            with pytest.raises(CacheUnavailable, match="it cannot be written"):
                await cache.store(key_of(2), staging, facts_of(2))
        await cache.lease("uid", key_of())
        assert await cache.release("uid") == [key_of()]
        await cache.sweep()
    assert files(tmp_path) == before


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EINTR])
async def test_t76_a_file_that_cannot_be_read_now_is_a_miss_and_stays(tmp_path, monkeypatch, code):
    async with DiskCache(tmp_path) as cache:
        await store(cache)
        before = files(tmp_path)
        with monkeypatch.context() as patch:

            def refuse(_self, _key):
                raise OSError(code, os.strerror(code))

            patch.setattr(Shelves, "read", refuse)
            assert await cache.get(key_of()) is None
        statistics = cache.statistics()
        assert (statistics.failures, statistics.misses, statistics.damaged) == (1, 1, 0)
        assert files(tmp_path) == before
        assert await is_whole(cache)


async def test_t76_records_that_cannot_be_read_at_start_lose_nothing(tmp_path, monkeypatch):
    async with DiskCache(tmp_path) as cache:
        await store(cache)
    before = files(tmp_path)
    original = os.open

    def refuse(path, flags, mode=0o777, *, dir_fd=None):
        if str(path).endswith(".json"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return original(path, flags, mode, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        async with DiskCache(tmp_path) as cache:
            assert cache.statistics().entries == 0
    assert files(tmp_path) == before
    async with DiskCache(tmp_path) as cache:
        assert await is_whole(cache)


async def test_t78_a_store_whose_caller_is_cancelled_ends_and_leaves_no_litter(tmp_path):
    async with DiskCache(tmp_path) as cache:
        for pause in (0.0, 0.001, 0.003, 0.01):
            async with cache.ingest() as staging:
                fill(staging)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        (await cache.store(key_of(), staging, facts_of())).close()
    async with DiskCache(tmp_path) as cache:
        assert not list((tmp_path / "v1" / "ingest").iterdir())
        assert cache.statistics().damaged == 0
        await store(cache)
        assert await is_whole(cache)


async def test_t79_a_reader_whose_caller_is_cancelled_leaves_no_open_file(tmp_path):
    async with DiskCache(tmp_path) as cache:
        await store(cache)
        for _ in range(20):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await cache.get(key_of())
        assert await is_whole(cache)


@pytest.mark.parametrize("which", ["v1", "v1/records", "v1/content", "fan-out", "repository"])
async def test_t80_folders_below_the_root_must_be_no_links(tmp_path, which):
    root = tmp_path / "cache"
    root.mkdir()
    async with DiskCache(root) as cache:
        await store(cache)
        content = cache._shelves.record(key_of()).stream.stored_sha256
    names = {"fan-out": f"v1/content/{content[:2]}", "repository": "v1/records/"}
    name = names.get(which, which)
    if which == "repository":
        name += record_name(key_of())[0]
    (root / name).rename(tmp_path / "elsewhere")
    (root / name).symlink_to(tmp_path / "elsewhere")
    before = files(tmp_path / "elsewhere")
    async with DiskCache(root) as cache:
        assert await cache.get(key_of()) is None
    assert files(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("which", ["record", "content"])
@pytest.mark.parametrize("kind", ["link", "hardlink", "fifo", "device", "folder"])
async def test_t81_only_regular_files_with_one_name_are_believed(tmp_path, kind, which):
    root = tmp_path / "cache"
    root.mkdir()
    async with DiskCache(root) as cache:
        await store(cache)
        shelves = cache._shelves
        path = shelves.record_path(key_of())
        if which == "content":
            path = shelves.content_path(shelves.record(key_of()).stream)
        path.rename(tmp_path / "original")
        if kind == "link":
            path.symlink_to(tmp_path / "original")
        elif kind == "hardlink":
            path.hardlink_to(tmp_path / "original")
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif os.geteuid() == 0:
            try:
                os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("devices cannot be made here")
        else:
            pytest.skip("devices cannot be made here")
        whole = (tmp_path / "original").read_bytes()
        assert await cache.get(key_of()) is None
        await store(cache)
        assert await is_whole(cache)
        assert (tmp_path / "original").read_bytes() == whole
    async with DiskCache(root) as cache:
        assert await is_whole(cache)


async def test_t83_keys_that_differ_in_one_digit_or_in_what_labels_drop_never_meet(tmp_path):
    one, other = f"sha256:{'d' * 64}", f"sha256:{'d' * 63}e"
    long = "reg.io/acme/" + "x" * 60
    keys = [
        CacheKey("reg.io/my/pkg", one),
        CacheKey("reg.io/my/pkg", other),
        CacheKey("reg.io/my-pkg", one),
        CacheKey("reg.io/my_pkg", one),
        CacheKey(f"{long}a", one),
        CacheKey(f"{long}b", one),
    ]
    assert seed_name(keys[0].repository, one) == seed_name(keys[0].repository, other)
    async with DiskCache(tmp_path) as cache:
        for number, key in enumerate(keys):
            assert await cache.get(key) is None
            async with cache.ingest() as staging:
                fill(staging, number)
                (await cache.store(key, staging, facts_of(number))).close()
        for number, key in enumerate(keys):
            package = await cache.get(key)
            assert package is not None
            async with package:
                check(package, number)


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400])
async def test_t86_a_clock_that_jumps_loses_nothing_that_is_needed(tmp_path, monkeypatch, jump):
    now = time.time()
    async with DiskCache(tmp_path, retention=3600) as cache:
        await cache.lease("uid", await store(cache, 1))
        await store(cache, 2)
        monkeypatch.setattr(time, "time", lambda: now + jump)
        await store(cache, 3)
        assert await is_whole(cache, 2)
        # Who was used last counts, not the clock.
        assert [h.key for h in cache._ledger.held()][-2:] == [key_of(3), key_of(2)]
        await cache.sweep()
        assert await is_whole(cache, 1)
    async with DiskCache(tmp_path, retention=3600) as cache:
        await cache.sweep()
        assert await is_whole(cache, 1)
        assert await cache.release("uid") == []
        assert await is_whole(cache, 1)


async def test_t87_a_record_of_another_version_is_neither_used_nor_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("controller.registry.cached.RECORD_VERSION", 2)
    async with DiskCache(tmp_path) as cache:
        await store(cache)
    before = files(tmp_path)
    monkeypatch.undo()
    async with DiskCache(tmp_path) as cache:
        assert await cache.get(key_of()) is None
        await cache.sweep()
        statistics = cache.statistics()
        assert (statistics.entries, statistics.damaged) == (0, 0)
    assert files(tmp_path) == before


async def test_t88_the_budget_is_what_was_told_and_a_share_of_the_disk(tmp_path, monkeypatch):
    disk = os.statvfs(tmp_path)
    share = int(0.8 * disk.f_frsize * disk.f_blocks)
    for told, budget in ((None, share), (1000, 1000), (2**62, share)):
        async with DiskCache(tmp_path, max_bytes=told) as cache:
            assert cache.statistics().budget == budget


async def test_t88_the_folder_never_holds_more_than_its_budget(tmp_path, monkeypatch):
    root, temporary = tmp_path / "cache", tmp_path / "temporary"
    root.mkdir()
    temporary.mkdir()
    largest = 0

    def measured(original):
        def call(*arguments):
            nonlocal largest
            result = original(*arguments)
            sizes = [
                path.stat().st_size
                for place in ("content", "ingest", "quarantine")
                for path in (root / "v1" / place).rglob("*")
                if path.is_file()
            ]
            largest = max(largest, sum(sizes))
            return result

        return call

    for name in ("place", "commit", "remove", "set_aside"):
        monkeypatch.setattr(Shelves, name, measured(getattr(Shelves, name)))
    async with DiskCache(root, max_bytes=600, temporary=temporary) as cache:
        for number in range(20):
            await store(cache, number)
            if number % 5 == 4:
                flip(cache._shelves.content_path(cache._shelves.record(key_of(number)).stream))
                assert await cache.get(key_of(number)) is None
        assert cache.statistics().entries > 4
    # A record passes through the place where files are written; it is not content.
    assert 0 < largest <= 600


async def test_t88_a_smaller_budget_takes_effect_at_start(tmp_path):
    async with DiskCache(tmp_path) as cache:
        for number in range(4):
            await store(cache, number)
        await cache.lease("uid", key_of(0))
        size = cache.statistics().size
    async with DiskCache(tmp_path, max_bytes=size // 2) as cache:
        assert cache.statistics().size <= size // 2
        assert await is_whole(cache, 0)
        assert await is_whole(cache, 3)
        assert not await is_whole(cache, 1)


async def seeded(root: Path, monkeypatch, content: bytes, name: str | None = None) -> bytes | None:
    """What a read-only folder with one flat file gives."""
    (root / (name or seed_name(NOP, NOP_DIGEST))).write_bytes(content)
    refused = OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr(cache_disk, "probe", lambda _root: refused)
    async with DiskCache(root) as cache, cache.ingest() as staging:
        key = CacheKey(NOP, NOP_DIGEST)
        assert await cache.get(key) is None
        if not await cache.seed(key, staging):
            return None
        return staging.stream.read_bytes()


async def test_t89_flat_files_count_in_read_only_folders_only(tmp_path, monkeypatch):
    name = "xpkg-crossplane-io-crossplane-contrib-provider-nop-sha256-552a3.gz"
    assert seed_name(NOP, NOP_DIGEST) == name
    plain = b"---\nkind: Provider\n"
    (tmp_path / name).write_bytes(gzip.compress(plain))
    async with DiskCache(tmp_path) as cache, cache.ingest() as staging:
        assert not await cache.seed(CacheKey(NOP, NOP_DIGEST), staging)
        assert not staging.stream.exists()
    assert await seeded(tmp_path, monkeypatch, gzip.compress(plain)) == plain
    async with DiskCache(tmp_path) as cache, cache.ingest() as staging:
        # Rewritten to a mirror, the package is still named by what its object says.
        key = CacheKey("mirror.example.org/nop", NOP_DIGEST)
        assert not await cache.seed(key, staging)
        assert await cache.seed(key, staging, sources=[NOP])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"plain",
        gzip.compress(b""),
        gzip.compress(b"x" * 1000)[:-9],
        gzip.compress(b"x") + b"y",
    ],
    ids=["empty", "no gzip", "empty stream", "cut short", "trailing bytes"],
)
async def test_t89_a_wrong_flat_file_is_not_used(tmp_path, monkeypatch, content):
    assert await seeded(tmp_path, monkeypatch, content) is None


async def test_t89_a_flat_file_that_holds_too_much_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("controller.registry.cache_seed.SEED_BYTES_MAX", 100)
    assert await seeded(tmp_path, monkeypatch, gzip.compress(b"x" * 101)) is None
    assert await seeded(tmp_path, monkeypatch, gzip.compress(b"x" * 100)) == b"x" * 100
    assert SEED_BYTES_MAX == 200 * 2**20


async def test_t89_links_in_a_volume_count_and_links_out_of_it_do_not(tmp_path, monkeypatch):
    root = tmp_path / "cache"
    (root / "..data").mkdir(parents=True)
    name = seed_name(NOP, NOP_DIGEST)
    (tmp_path / "secret").write_bytes(gzip.compress(b"outside"))
    (root / "..data" / "file").write_bytes(b"")
    (root / name).symlink_to("..data/file")
    assert await seeded(root, monkeypatch, gzip.compress(b"inside")) == b"inside"
    (root / name).unlink()
    (root / name).symlink_to(tmp_path / "secret")
    async with DiskCache(root) as cache, cache.ingest() as staging:
        assert not await cache.seed(CacheKey(NOP, NOP_DIGEST), staging)


HOLD = (
    "import pathlib, signal, sys\n"
    "from controller.registry.shelves import Shelves\n"
    "shelves = Shelves(pathlib.Path(sys.argv[1]))\n"
    "shelves.open()\n"
    "shelves.begin()\n"
    "print('holds', flush=True)\n"
    "signal.pause()\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that writes and does not end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=PLACE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"holds\n"
    yield process
    process.kill()
    process.wait(10)
    process.stdout.close()


async def test_t77_a_process_that_dies_while_it_writes_blocks_nobody(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    async with DiskCache(tmp_path) as cache:
        await store(cache)
        assert await is_whole(cache)


async def test_t78_a_process_that_does_not_end_makes_others_use_packages_uncached(
    tmp_path, holder, monkeypatch
):
    monkeypatch.setattr(cache_lock, "WRITE_WAIT_SECONDS", 0.05)
    async with DiskCache(tmp_path) as cache, cache.ingest() as staging:
        fill(staging)
        with pytest.raises(CacheUnavailable, match="another process holds its lock"):
            await cache.store(key_of(), staging, facts_of())
        async with await keep_uncached(key_of(), staging, facts_of()) as package:
            check(package)
        await cache.lease("uid", key_of())  # held in this process
        with pytest.raises(CacheUnavailable, match="another process holds its lock"):
            await cache.release("uid")
        holder.kill()
        holder.wait(10)
        assert await cache.release("uid") == [key_of()]


async def test_t78_what_one_process_does_another_sees(tmp_path):
    async with DiskCache(tmp_path) as one, DiskCache(tmp_path) as other:
        await store(one, 1)
        assert await is_whole(other, 1)
        await store(other, 2)
        await other.lease("uid", key_of(2))
        await store(one, 3)
        assert one.statistics().entries == 3
        assert one._ledger.owners_of(key_of(2)) == ["uid"]
        await other.delete(key_of(1))
        assert not await is_whole(one, 1)
        assert one.statistics().entries == 2
        # Content that another process began to share is not removed with what shared it first.
        await store(one, 4, repository="reg.io/a/b")
        await store(other, 4, repository="reg.io/c/d")
        await one.delete(key_of(4, "reg.io/a/b"))
        package = await other.get(key_of(4, "reg.io/c/d"))
        assert package is not None
        package.close()


async def test_what_deleted_revisions_needed_is_kept_for_a_while(tmp_path, monkeypatch):
    now = time.time()
    async with DiskCache(tmp_path, retention=7200) as cache:
        key = await store(cache)
        await cache.lease("uid", key)
        assert await cache.release("uid") == []
        assert await is_whole(cache)
    async with DiskCache(tmp_path, retention=7200) as cache:
        await cache.sweep()
        assert await is_whole(cache)
        monkeypatch.setattr(time, "time", lambda: now + 7000)
        await cache.sweep()
        assert cache.statistics().entries == 1
        monkeypatch.setattr(time, "time", lambda: now + 7300)
        await cache.sweep()
        assert cache.statistics().entries == 0
    assert files(tmp_path) == []


async def test_what_is_kept_for_a_while_still_makes_room(tmp_path):
    async with DiskCache(tmp_path, retention=3600) as cache:
        await cache.lease("uid", await store(cache, 1))
        size = cache.statistics().size
        await cache.release("uid")
    async with DiskCache(tmp_path, retention=3600, max_bytes=size + size // 2) as cache:
        await store(cache, 2)
        assert not await is_whole(cache, 1)


async def test_statistics_tell_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_folder, "DISK_SHARE", 0.5)
    async with DiskCache(tmp_path) as cache:
        await store(cache, 1)
        one = cache.statistics().size
        await store(cache, 2)
        await cache.lease("uid", key_of(1))
        statistics = cache.statistics()
        assert (statistics.entries, statistics.size, statistics.leased) == (2, 2 * one, one)
        assert (statistics.stores, statistics.evictions) == (2, 0)
