import asyncio
import hashlib
import io
import os
import random
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.registry import cached
from controller.registry.cache_files import DamagedEntry, OtherVersion, hash_file, open_file
from controller.registry.cached import CacheKey, Content, Record, keep_uncached, open_content
from controller.registry.failures import LimitExceeded, StorageError
from controller.registry.shelves import Shelves
from controller.registry.staging import Staging
from tests.registry.packages import check, facts_of, fill, key_of

CONTENT = Content("a" * 64, 10, "b" * 64, 5, "gzip")
RECORD = Record(key_of(), facts_of(), CONTENT, CONTENT)


def test_a_record_survives_writing_and_reading():
    assert Record.decode(RECORD.encode()) == RECORD


@given(st.integers(0, len(RECORD.encode()) - 1), st.integers(1, 255))
def test_a_flipped_byte_anywhere_is_noticed(position, flip):
    raw = bytearray(RECORD.encode())
    raw[position] ^= flip
    with pytest.raises(DamagedEntry):
        Record.decode(bytes(raw))


@given(st.integers(0, len(RECORD.encode()) - 1))
def test_a_truncated_record_is_noticed(length):
    with pytest.raises(DamagedEntry):
        Record.decode(RECORD.encode()[:length])


def sealed(document) -> bytes:
    body = orjson.dumps(document)
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@pytest.mark.parametrize(
    "change",
    [
        {"key": {"repository": "r", "digest": "sha256:../../etc/passwd"}},
        {"key": {"repository": "r"}},
        {"key": None},
        {"facts": {}},
        {"facts": {"unknown": 1, "manifest": ""}},
        {"facts": {"meta": {}, "manifest": "***"}},
        {"stream": {"sha256": ""}},
        {"objects": []},
    ],
)
def test_a_record_of_another_form_is_damaged(change):
    document = orjson.loads(RECORD.encode().partition(b"\n")[2])
    with pytest.raises(DamagedEntry):
        Record.decode(sealed(document | change))
    with pytest.raises(DamagedEntry):
        Record.decode(sealed([]))


def test_t87_a_record_of_another_version_is_not_damaged():
    document = orjson.loads(RECORD.encode().partition(b"\n")[2])
    with pytest.raises(OtherVersion, match="version 2"):
        Record.decode(sealed(document | {"version": 2}))


async def test_t85_a_package_tells_which_policies_accepted_it(staging):
    fill(staging)
    facts = replace(facts_of(), verified=[{"policyFingerprint": "a" * 64, "authority": "acme"}])
    assert Record.decode(replace(RECORD, facts=facts).encode()).facts == facts
    async with await keep_uncached(key_of(), staging, facts) as package:
        assert package.accepted_by(None)  # no policy applies
        assert package.accepted_by("a" * 64)
        assert not package.accepted_by("b" * 64)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_damaged_record(raw):
    with pytest.raises(DamagedEntry):
        Record.decode(raw)


@pytest.mark.parametrize("digest", ["", "sha256:x", "../x", f"sha256:{'A' * 64}", "md5:abc"])
def test_a_key_needs_a_digest(digest):
    with pytest.raises(ValueError, match="is no digest"):
        CacheKey("reg.io/a", digest)


@pytest.fixture
def staging(tmp_path):
    folder = tmp_path / "staging"
    folder.mkdir()
    return Staging(folder)


async def test_an_uncached_package_outlives_its_folder(staging):
    fill(staging)
    package = await keep_uncached(key_of(), staging, facts_of())
    for path in staging.folder.iterdir():
        path.unlink()
    staging.folder.rmdir()
    async with package:
        check(package)
        check(package)  # each reader starts at the beginning
        assert not package.cached
        assert package.record.stream.encoding == ""
        assert package.meta == facts_of().meta
        assert package.details == facts_of().details
        assert package.key == key_of()
    with pytest.raises(ValueError, match="closed"):
        list(package.objects())


async def test_a_package_without_its_forms_is_a_storage_error(staging):
    with pytest.raises(StorageError, match=r"cannot read .*package\.yaml"):
        await keep_uncached(key_of(), staging, facts_of())
    staging.stream.write_text("x")
    with pytest.raises(StorageError, match=r"cannot read .*objects\.jsonl"):
        await keep_uncached(key_of(), staging, facts_of())


@pytest.mark.parametrize("encoding", ["gzip", "zstd", ""])
@pytest.mark.parametrize("size", [0, 1, 100, 3_000_000])
def test_every_encoding_gives_the_plain_bytes(tmp_path, encoding, size):
    plain = random.Random(size).randbytes(size // 2) + b"x" * (size - size // 2)
    (tmp_path / "plain").write_bytes(plain)
    shelves = Shelves(tmp_path)
    path = tmp_path / "plain"
    if encoding:
        path = tmp_path / "packed"
        content = shelves.pack(tmp_path / "plain", path, encoding)
        assert path.stat().st_size == content.stored_size
    with open_file(path) as file:
        digest, stored = hash_file(file)
        if not encoding:
            content = Content(digest, stored, digest, stored, "")
        assert (digest, stored) == (content.stored_sha256, content.stored_size)
        assert io.BufferedReader(open_content(file, content)).read() == plain
        assert content.size == size


async def test_lines_come_in_batches_of_bounded_size(staging):
    staging.stream.write_bytes(b"")
    lines = [b'{"n":%d,"x":"%s"}' % (n, b"y" * (n % 700)) for n in range(5000)]
    staging.objects.write_bytes(b"\n".join(lines) + b"\n")
    async with await keep_uncached(key_of(), staging, facts_of()) as package:
        batches = [batch async for batch in package.batches(10_000)]
        assert [line for batch in batches for line in batch] == lines
        assert all(sum(map(len, batch)) < 10_000 + 1000 for batch in batches)
        assert len(batches) > 10


async def test_the_last_line_needs_no_end(staging):
    staging.stream.write_bytes(b"")
    for content, lines in (
        (b"", []),
        (b"{}", [b"{}"]),
        (b"{}\n", [b"{}"]),
        (b"{}\n[]", [b"{}", b"[]"]),
    ):
        staging.objects.write_bytes(content)
        async with await keep_uncached(key_of(), staging, facts_of()) as package:
            assert list(package.objects()) == lines


async def test_an_object_has_a_greatest_size(staging, monkeypatch):
    monkeypatch.setattr(cached, "LINE_MAX", 1000)
    staging.stream.write_bytes(b"")
    staging.objects.write_bytes(b"x" * 2_000_000)
    async with await keep_uncached(key_of(), staging, facts_of()) as package:
        with pytest.raises(LimitExceeded, match="larger than 1000 bytes"):
            list(package.objects())


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_only_regular_files_are_opened(tmp_path, kind):
    path = tmp_path / "entry"
    if kind == "link":
        (tmp_path / "real").write_text("x")
        path.symlink_to(tmp_path / "real")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises((DamagedEntry, OSError)):
        open_file(path)


async def test_two_readers_do_not_disturb_each_other(staging):
    fill(staging, size=100_000)
    async with await keep_uncached(key_of(), staging, facts_of()) as package:
        one, two = package.objects(), package.objects()
        pairs = await asyncio.to_thread(lambda: list(zip(one, two, strict=True)))
        assert all(a == b for a, b in pairs)
        assert len(pairs) == 100_000
