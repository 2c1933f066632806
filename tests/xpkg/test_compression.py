"""Compression: formats by their first bytes, members and frames, damage and limits."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib

import pytest
import zstandard

from controller.xpkg.compression import GzipWriter, Reader, detect
from controller.xpkg.errors import LimitExceeded, MalformedPackage
from tests.xpkg.tars import make_tar, member

TAR = make_tar(member("a", b"x" * 1000))


def read(data, budget=10**9):
    reader = Reader(io.BytesIO(data), budget=budget, limit=f"{budget} bytes")
    parts = []
    while part := reader.read(1000):
        parts.append(part)
    assert reader.position == sum(map(len, parts))
    return b"".join(parts)


@pytest.mark.parametrize(
    "data",
    [
        TAR,
        gzip.compress(TAR),
        gzip.compress(TAR) + b"\0" * 70_000,
        gzip.compress(TAR[:700]) + gzip.compress(b"") + gzip.compress(TAR[700:]),
        zstandard.compress(TAR),
        zstandard.compress(TAR[:700]) + zstandard.compress(TAR[700:]),
        b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + zstandard.compress(TAR),
        zstandard.compress(TAR) + b"\x5f\x2a\x4d\x18\x04\x00\x00\x00abcd",
    ],
    ids=[
        "plain",
        "gzip",
        "gzip with padding",
        "gzip members",
        "zstd",
        "zstd frames",
        "zstd skippable frame first",
        "zstd skippable frame last",
    ],
)
def test_formats_are_told_by_their_bytes(data):
    assert read(data) == TAR


@pytest.mark.parametrize("data", [b"", b"\0" * 1024])
def test_nothing_and_zeros_are_an_empty_archive(data):
    assert detect(data[:262]) == "plain"
    assert read(data) == data


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"PK\x03\x04" + b"x" * 600, "is zip; only gzip, zstd and plain tar archives are read"),
        (lzma.compress(TAR), "is xz"),
        (b"BZh9" + b"x" * 600, "is bzip2"),
        (b"<html>" + b"x" * 600, "is not a tar archive"),
        (b"x", "is not a tar archive"),
    ],
)
def test_other_formats_are_named(data, cause):
    with pytest.raises(MalformedPackage, match=cause):
        read(data)


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 30])
def test_gzip_that_is_cut_short_is_refused(cut):
    with pytest.raises(MalformedPackage, match="cut short"):
        read(gzip.compress(TAR)[:-cut])


@pytest.mark.parametrize("position", [-8, -1])
def test_gzip_with_a_wrong_checksum_or_length_is_refused(position):
    data = bytearray(gzip.compress(TAR))
    data[position] ^= 1
    with pytest.raises(MalformedPackage, match="damaged"):
        read(bytes(data))


@pytest.mark.parametrize("rest", [b"x", b"\0" * 100 + b"x", TAR])
def test_gzip_with_something_behind_it_is_refused(rest):
    with pytest.raises(MalformedPackage, match="followed by something else"):
        read(gzip.compress(TAR) + rest)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_zstd_that_is_cut_short_is_refused(cut):
    with pytest.raises(MalformedPackage, match="cut short"):
        read(zstandard.compress(TAR)[:-cut])


def test_zstd_that_needs_a_large_window_is_refused():
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(TAR) + compressor.flush()
    with pytest.raises(LimitExceeded, match="needs a window of more than 8388608 bytes"):
        read(data)


def test_zstd_that_needs_a_dictionary_is_refused():
    dictionary = zstandard.ZstdCompressionDict(b"abcdefgh" * 100)
    data = zstandard.ZstdCompressor(dict_data=dictionary).compress(b"abcdefgh" * 100)
    with pytest.raises(MalformedPackage, match=r"damaged|cut short"):
        assert read(data) == b""


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress, bytes])
def test_a_budget_ends_the_reading_of_a_bomb(compress):
    data = compress(TAR + bytes(20 * 2**20))
    with pytest.raises(LimitExceeded, match="is larger than 1000000 bytes"):
        read(data, budget=1_000_000)


def test_gzip_within_gzip_is_unpacked_once():
    assert read(gzip.compress(gzip.compress(TAR))) == gzip.compress(TAR)


def test_the_writers_bytes_depend_on_content_alone():
    out = io.BytesIO()
    writer = GzipWriter(out)
    for start in range(0, len(TAR), 777):
        writer.write(TAR[start : start + 777])
    writer.finish()
    data = out.getvalue()
    assert gzip.decompress(data) == TAR
    assert data[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 8)
    assert data[10:-8] == deflate.compress(TAR) + deflate.flush()
