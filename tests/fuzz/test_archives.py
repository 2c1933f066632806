"""Archives that others packed: tar, gzip, zstd, and a differential test against tarfile."""

import gzip
import io
import tarfile
import zlib
from typing import Any

import zstandard
from hypothesis import strategies as st

from controller.xpkg.compression import Reader
from controller.xpkg.errors import MalformedPackage
from controller.xpkg.tar import TarReader
from tests.fuzz.inputs import check_text, damaged, fuzzed

BUDGET = 2**20
FORMATS = (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
NAMES = st.sampled_from(
    ["package.yaml", "./a", "a/b/c", "x" * 150, "é.yaml", "y" * 90 + "/" + "z" * 90]
)
MEMBERS = st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=4)


def packed(members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT, **more: Any) -> bytes:
    """Pack members as Python does; the oldest format has no names longer than 100 bytes."""
    if form == tarfile.USTAR_FORMAT:
        members = [(name, content) for name, content in members if len(name) < 100]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in more.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(content))
        archive.addfile(tarfile.TarInfo("folder/"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../target"
        archive.addfile(link)
    return out.getvalue()


def reader(raw: bytes) -> Reader:
    return Reader(io.BytesIO(raw), budget=BUDGET, limit="1 MiB, uncompressed")


def contents(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Read all regular files of an archive."""
    archive = TarReader(reader(raw))
    return [(entry.name, b"".join(archive.chunks())) for entry in archive if entry.is_file]


@fuzzed(MEMBERS, st.sampled_from(FORMATS))
def test_archives_hold_what_tarfile_packed(members: list[tuple[str, bytes]], form: int) -> None:
    found = contents(packed(members, form))
    short = form == tarfile.USTAR_FORMAT
    kept = [each for each in members if len(each[0]) < 100 or not short]
    assert found[: len(kept)] == [(name.encode(), content) for name, content in kept]


ARCHIVES = st.builds(packed, MEMBERS, st.sampled_from(FORMATS)) | st.just(
    packed([("a", b"x")], pax_headers={"path": "p" * 300, "size": "1", "GNU.sparse.major": "1"})
)


@fuzzed(damaged(ARCHIVES))
def test_damaged_archives_are_read_or_refused(raw: bytes) -> None:
    try:
        contents(raw)
    except MalformedPackage as error:
        check_text(error)


@fuzzed(
    st.binary(max_size=512),
    st.integers(0, 511),
    st.sampled_from([b"\x80", b"\xff", b"-1", b"9" * 11]),
)
def test_headers_with_a_right_checksum_are_read_or_refused(
    noise: bytes, at: int, put: bytes
) -> None:
    block = bytearray(packed([("package.yaml", b"a: b\n")], tarfile.USTAR_FORMAT)[:512])
    block[at : at + len(noise)] = noise[: 512 - at]
    block[124 : 124 + len(put)] = put
    block = block[:512]
    block[257:262] = b"ustar"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    try:
        contents(bytes(block) + bytes(2048))
    except MalformedPackage as error:
        check_text(error)


def pressed(content: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(content, 1) + bytes(7)
    if how == "gzip twice":
        return gzip.compress(content[:100], 1) + gzip.compress(content[100:], 1)
    if how == "zstd twice":
        press = zstandard.ZstdCompressor().compress
        return press(content[:100]) + b"\x50\x2a\x4d\x18\x02\0\0\0ab" + press(content[100:])
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


PRESSED = st.sampled_from(["gzip", "gzip twice", "zstd", "zstd twice"])


def everything(raw: bytes) -> bytes:
    source = reader(raw)
    parts = []
    while part := source.read(50_000):
        parts.append(part)
        assert len(part) <= 50_000
    assert source.position <= BUDGET
    return b"".join(parts)


@fuzzed(st.binary(max_size=5000), PRESSED)
def test_what_was_compressed_is_read_back(content: bytes, how: str) -> None:
    assert everything(pressed(content, how)) == content


@fuzzed(damaged(st.builds(pressed, st.binary(max_size=2000), PRESSED)))
def test_damaged_compression_is_read_or_refused(raw: bytes) -> None:
    try:
        everything(raw)
    except MalformedPackage as error:
        check_text(error)


@fuzzed(st.sampled_from([64 * BUDGET, BUDGET + 1]), PRESSED)
def test_what_grows_beyond_its_budget_is_refused_in_time(size: int, how: str) -> None:
    raw = _grown(size, how)
    try:
        everything(raw)
    except MalformedPackage as error:
        check_text(error, "is larger than 1 MiB")
    else:
        raise AssertionError("it was read")


_BOMBS: dict[tuple[int, str], bytes] = {}


def _grown(size: int, how: str) -> bytes:
    """Compress many zero bytes in small steps, once."""
    if (size, how) not in _BOMBS:
        step = bytes(2**16)
        if how.startswith("gzip"):
            press = zlib.compressobj(9, wbits=31)
            parts = [press.compress(step) for _ in range(size // len(step) + 1)] + [press.flush()]
        else:
            packer = zstandard.ZstdCompressor().compressobj()
            parts = [packer.compress(step) for _ in range(size // len(step) + 1)] + [packer.flush()]
        _BOMBS[size, how] = b"".join(parts)
    return _BOMBS[size, how]
