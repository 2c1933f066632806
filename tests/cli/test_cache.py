"""``crossdock cache``: what a person sees, beside a manager that uses the folder."""

from __future__ import annotations

import asyncio
import gzip
import os
import tarfile
from io import BytesIO
from pathlib import Path

import orjson
import pytest
import yaml

from controller.registry.cache import CacheKey, DiskCache
from controller.registry.cache_seed import seed_name
from controller.registry.ledger import PINNED
from controller.registry.shelves import Shelves
from tests.cli.conftest import NOW, Command
from tests.registry.packages import check, facts_of, fill, key_of

REPOSITORY = "reg.io/acme/p"
PACKAGE = b"""apiVersion: meta.pkg.crossplane.io/v1
kind: Provider
metadata:
  name: nop
spec:
  controller:
    image: reg.io/acme/nop:v1
"""


def key(number: int) -> CacheKey:
    return key_of(number, f"{REPOSITORY}{number}")


def at(root: Path, number: int, seconds_ago: float) -> None:
    stamp = NOW.timestamp() - seconds_ago
    os.utime(Shelves(root).record_path(key(number)), (stamp, stamp))


async def fill_cache(root: Path) -> None:
    async with DiskCache(root) as cache:
        for number in (1, 2, 3):
            async with cache.ingest() as staging:
                fill(staging, number)
                (await cache.store(key(number), staging, facts_of(number))).close()
        await cache.lease("uid-1", key(1))
    for number, ago in ((1, 10), (2, 7200), (3, 60)):
        at(root, number, ago)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    asyncio.run(fill_cache(folder))
    return folder


def numbers(root: Path) -> list[int]:
    """Which packages are whole in a cache."""

    async def read() -> list[int]:
        whole = []
        async with DiskCache(root) as cache:
            for number in (1, 2, 3):
                package = await cache.get(key(number))
                if package is not None:
                    async with package:
                        check(package, number)
                    whole.append(number)
        return whole

    return asyncio.run(read())


def damage(root: Path, number: int) -> None:
    shelves = Shelves(root)
    path = shelves.content_path(shelves.record(key(number)).stream)
    path.chmod(0o644)
    path.write_bytes(b"other")


def test_ls_shows_packages_with_size_need_and_last_use(crossdock: Command, root: Path):
    answer = crossdock("cache", "ls", "-c", str(root))
    assert answer.code == 0
    assert answer.out == (
        "PACKAGE          DIGEST                KIND       SIZE   NEEDED BY    USED\n"
        "reg.io/acme/p1   sha256:000000000000   Provider   65 B   1 revision   10s\n"
        "reg.io/acme/p2   sha256:000000000000   Provider   65 B   -            2h\n"
        "reg.io/acme/p3   sha256:000000000000   Provider   65 B   -            60s\n"
    )
    wide = crossdock("cache", "ls", "-o", "wide", environ={"XPKG_CACHE_DIR": str(root)})
    assert "NAME" in wide.out
    assert f"sha256:{1:064x}" in wide.out
    assert "uid-1" in wide.out


def test_ls_prints_documents(crossdock: Command, root: Path):
    environ = {"CACHE_DIR": str(root)}
    as_json = orjson.loads(crossdock("cache", "ls", "-o", "json", environ=environ).out)
    assert as_json == yaml.safe_load(crossdock("cache", "ls", "-o", "yaml", environ=environ).out)
    first = as_json["items"][0]
    assert (first["repository"], first["owners"], first["size"]) == (
        f"{REPOSITORY}1",
        ["uid-1"],
        65,
    )
    assert first["lastUsed"] == "2026-11-23T11:59:50Z"


def test_wrong_usage_is_told(crossdock: Command, root: Path, tmp_path: Path):
    answer = crossdock("cache", "ls", "-o", "xml", "-c", str(root))
    assert answer.code == 2
    assert '"default", "wide", "json", "yaml" but got "xml"' in answer.err
    answer = crossdock("cache", "prune", "-c", str(root))
    assert answer.code == 2
    assert "say what to remove: --older-than, --max-bytes or --all" in answer.err
    answer = crossdock("cache", "prune", "--max-bytes", "20X", "-c", str(root))
    assert answer.code == 2
    assert 'expected a size such as 20Mi but got "20X"' in answer.err
    answer = crossdock("cache", "ls", "-c", "gone")
    assert answer.code == 1
    assert f"cache folder {tmp_path}/gone does not exist" in answer.err
    assert crossdock("cache", "verify", "-c", str(tmp_path)).out == "0 packages whole, 0 damaged\n"
    assert "No packages are in" in crossdock("cache", "ls", "-c", str(tmp_path)).err


def test_verify_names_each_damaged_entry_and_the_remedy(crossdock: Command, root: Path):
    before = sorted(root.rglob("*"))
    answer = crossdock("cache", "verify", "-c", str(root))
    assert (answer.code, answer.out) == (0, "3 packages whole, 0 damaged\n")
    damage(root, 2)
    Shelves(root).record_path(key(3)).write_bytes(b"broken")
    answer = crossdock("cache", "verify", "-c", str(root))
    assert (answer.code, answer.out) == (1, "1 package whole, 2 damaged\n")
    assert f"{key(2)}: its content does not match its hash" in answer.err
    assert f"sha256-{3:064x}.json: the record does not match its checksum" in answer.err
    assert "the manager fetches it again at its next use" in answer.err
    assert sorted(root.rglob("*")) == before


def test_prune_removes_what_is_told_and_nobody_needs(crossdock: Command, root: Path):
    prune = ("cache", "prune", "-c", str(root))
    answer = crossdock(*prune, "--older-than", "1h", "--dry-run")
    assert answer.out == f"{key(2)} would be removed\n"
    assert numbers(root) == [1, 2, 3]
    at(root, 2, 7200)
    answer = crossdock(*prune, "--older-than", "1h")
    assert answer.out == f"{key(2)} removed\n"
    assert answer.err == "1 package removed, 65 B freed\n"
    assert numbers(root) == [1, 3]
    assert crossdock(*prune, "--max-bytes", "130").out == ""
    assert crossdock(*prune, "--max-bytes", "0").out == f"{key(3)} removed\n"
    assert numbers(root) == [1]


def test_prune_of_all_keeps_what_revisions_need(crossdock: Command, root: Path):
    async def pin() -> None:
        async with DiskCache(root) as cache:
            await cache.lease(PINNED, key(2))
            damaged = cache._shelves.quarantine
            damaged.folder.mkdir()
            (damaged.folder / "x").write_bytes(b"x")

    asyncio.run(pin())
    assert crossdock("cache", "prune", "--max-bytes=0", "-c", str(root)).code == 0
    assert numbers(root) == [1, 2]
    assert crossdock("cache", "prune", "--all", "-c", str(root)).code == 0
    assert numbers(root) == [1]
    assert not list((root / "v1" / "quarantine").iterdir())
    assert not (root / "v1" / "leases" / f"{PINNED}.json").exists()


@pytest.mark.parametrize("target", ["out.tar", "out"])
def test_what_is_exported_can_be_imported(
    crossdock: Command, root: Path, tmp_path: Path, target: str
):
    answer = crossdock("cache", "export", target, f"{REPOSITORY}1", str(key(3)), "-c", str(root))
    assert answer.code == 0
    assert answer.out == f"{key(1)}\n{key(3)}\n"
    assert answer.err == f"2 packages exported to {target}\n"
    if target == "out":
        assert numbers(tmp_path / target) == [1, 3]  # it is a cache as it is
    (tmp_path / "other").mkdir()
    answer = crossdock("cache", "import", target, "-c", "other")
    assert answer.out == f"{key(1)} imported\n{key(3)} imported\n"
    assert numbers(tmp_path / "other") == [1, 3]
    assert "import" in crossdock("cache", "ls", "-c", "other").out
    answer = crossdock("cache", "export", target, "reg.io/none", "-c", str(root))
    assert "reg.io/none is not in the cache" in answer.err


@pytest.mark.parametrize("target", ["out.tar", "out"])
def test_t72_damaged_packages_are_neither_exported_nor_imported(
    crossdock: Command, root: Path, tmp_path: Path, target: str
):
    damage(root, 2)
    answer = crossdock("cache", "export", target, "-c", str(root))
    assert answer.code == 1
    assert f"{key(2)}: its content does not match its hash" in answer.err
    (tmp_path / "other").mkdir()
    assert crossdock("cache", "import", target, "-c", "other").code == 0
    assert numbers(tmp_path / "other") == [1, 3]
    (tmp_path / "more").mkdir()
    assert crossdock("cache", "import", str(root), "-c", "more").code == 1
    assert numbers(tmp_path / "more") == [1, 3]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../x", tarfile.REGTYPE),
        ("/etc/x", tarfile.REGTYPE),
        ("v1/leases/uid.json", tarfile.REGTYPE),
        (f"v1/content/aa/{'a' * 64}", tarfile.SYMTYPE),
        (f"v1/content/aa/../{'a' * 64}", tarfile.REGTYPE),
    ],
)
def test_t82_an_archive_with_other_names_is_refused(
    crossdock: Command, root: Path, tmp_path: Path, name: str, kind: bytes
):
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, "/etc/passwd", 1
        archive.addfile(info, BytesIO(b"x"))
    before = sorted(tmp_path.rglob("*"))
    answer = crossdock("cache", "import", "evil.tar", "-c", str(root))
    assert answer.code == 1
    assert "evil.tar is no export of a cache: it holds" in answer.err
    assert sorted(tmp_path.rglob("*")) == before


def test_t89_a_flat_file_is_imported_when_its_reference_fits(
    crossdock: Command, root: Path, tmp_path: Path
):
    nop = CacheKey("xpkg.crossplane.io/acme/nop", f"sha256:{'5' * 64}")
    flat = tmp_path / "flat"
    flat.mkdir()
    path = flat / seed_name(nop.repository, nop.digest)
    path.write_bytes(gzip.compress(PACKAGE))
    answer = crossdock("cache", "import", "flat", "-c", str(root))
    assert answer.code == 1
    assert "what it holds cannot be told from its name: say it with --package" in answer.err
    answer = crossdock("cache", "import", "flat", "--package", "acme", "-c", str(root))
    assert answer.code == 1
    wrong = f"{nop.repository}@sha256:{'6' * 64}"
    assert crossdock("cache", "import", "flat", "--package", wrong, "-c", str(root)).code == 1
    answer = crossdock("cache", "import", "flat", "--package", str(nop), "-c", str(root))
    assert (answer.code, answer.out) == (0, f"{nop} imported\n")
    assert f"{nop.repository}" in crossdock("cache", "ls", "-c", str(root)).out

    async def content() -> bytes:
        async with DiskCache(root) as cache:
            package = await cache.get(nop)
            assert package is not None
            async with package:
                return package.open_stream().read()

    assert asyncio.run(content()) == PACKAGE


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"plain", "is no gzip file"),
        (gzip.compress(PACKAGE)[:-4], "is cut short"),
        (gzip.compress(b"a: 1\n"), "apiVersion is missing"),
        (gzip.compress(b"\n"), "not exactly one package meta type"),
    ],
    ids=["plain", "short", "no kind", "empty"],
)
def test_t89_a_wrong_flat_file_is_refused(
    crossdock: Command, root: Path, tmp_path: Path, content: bytes, cause: str
):
    nop = CacheKey("xpkg.crossplane.io/acme/nop", f"sha256:{'5' * 64}")
    path = tmp_path / seed_name(nop.repository, nop.digest)
    path.write_bytes(content)
    answer = crossdock("cache", "import", path.name, "--package", str(nop), "-c", str(root))
    assert answer.code == 1
    assert cause in answer.err
    assert numbers(root) == [1, 2, 3]
    assert len(list((root / "v1" / "records").glob("*/*"))) == 3


def test_every_verb_works_while_a_manager_uses_the_folder(
    crossdock: Command, root: Path, tmp_path: Path
):
    async def manage() -> None:
        async with DiskCache(root) as manager:
            for argv in (
                ("ls",),
                ("verify",),
                ("export", "out.tar"),
                ("prune", "--max-bytes=0"),
                ("import", "out.tar"),
                ("verify",),
            ):
                answer = await asyncio.to_thread(crossdock, "cache", *argv, "-c", str(root))
                assert answer.code == 0, answer
            async with manager.ingest() as staging:
                fill(staging, 4)
                (await manager.store(key(4), staging, facts_of(4))).close()
            assert manager.statistics().entries == 4

    asyncio.run(manage())
    assert numbers(root) == [1, 2, 3]
