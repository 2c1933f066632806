"""Hostile layers, archives and compression, as numbered in the threat model (T47 to T61)."""

from __future__ import annotations

import gzip
import lzma
import random
import struct
import tarfile
import zlib

import pytest
import zstandard

from controller.model.manifest import ManifestError
from controller.xpkg import tar
from controller.xpkg.errors import LimitExceeded, MalformedPackage, PackageNotFound
from controller.xpkg.locate import IMAGE_BYTES_MAX, PACKAGE_BYTES_MAX, Search
from controller.xpkg.parse import parse_in_process
from tests.xpkg.tars import BASE, Layer, make_tar, member, with_checksum

YAML = b"kind: Provider\n"
PACKAGE = member("package.yaml", YAML)
TAR = make_tar(PACKAGE)
MIB = 2**20
SMALLER = "make the package smaller, or split it"


def gz(*members):
    return gzip.compress(make_tar(*members), mtime=0)


def raw_header(name=b"package.yaml", size=b"00000000001\0", kind=b"0"):
    """A header block whose fields are written as they are given."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:124] = b"0000644\x000000000\x000000000\x00"
    block[124:136] = size
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    return with_checksum(bytes(block))


def extended(kind, data):
    """An extension header with its content."""
    size = b"%011o\0" % len(data)
    return raw_header(b"././@", size, kind) + data + bytes(-len(data) % 512)


def bomb(mebibytes):
    """A gzip stream of zeros behind an ordinary entry, some thousand times smaller."""
    header = raw_header(b"zeros", b"%011o\0" % (mebibytes * MIB))
    deflate = zlib.compressobj(9, wbits=31)
    parts = [deflate.compress(header)]
    parts += [deflate.compress(bytes(MIB)) for _ in range(mebibytes)]
    return b"".join([*parts, deflate.compress(TAR), deflate.flush()])


class TestT47Bombs:
    async def test_t47_a_gzip_bomb_ends_at_the_budget_of_the_image(self, attack, monkeypatch):
        assert IMAGE_BYTES_MAX == 4 * 2**30
        data = bomb(200)
        assert len(data) < MIB
        monkeypatch.setitem(Search.__init__.__kwdefaults__, "image_limit", 100 * MIB)
        text = await attack.refused(data, error=LimitExceeded)
        limit = f"{100 * MIB} bytes, uncompressed and with the layers above it"
        assert text == f"layer 1: is larger than {limit}; {SMALLER}"

    async def test_t47_a_zstd_bomb_ends_at_the_budget_of_the_image(self, attack, monkeypatch):
        monkeypatch.setitem(Search.__init__.__kwdefaults__, "image_limit", 100 * MIB)
        compressor = zstandard.ZstdCompressor(level=19).compressobj()
        header = raw_header(b"zeros", b"%011o\0" % (200 * MIB))
        parts = [compressor.compress(header)]
        parts += [compressor.compress(bytes(MIB)) for _ in range(200)]
        text = await attack.refused(b"".join([*parts, compressor.flush()]), error=LimitExceeded)
        assert f"is larger than {100 * MIB} bytes" in text


async def test_t48_gzip_within_gzip_is_unpacked_once(attack):
    inner = gz(member("package.yaml", random.Random(48).randbytes(5000)))
    text = await attack.refused(gzip.compress(inner), error=MalformedPackage)
    cause = "is not a tar archive, once it is uncompressed"
    assert text == f"layer 1: {cause}; build the package again"


class TestT49Zstd:
    async def test_t49_a_window_of_two_gibibytes(self, attack):
        frame = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([21 << 3]) + b"\x01\x00\x00"
        text = await attack.refused(frame, error=LimitExceeded)
        cause = "the zstd data needs a window of more than 8388608 bytes"
        assert text == f"layer 1: {cause}; {SMALLER}"

    async def test_t49_a_dictionary(self, attack):
        dictionary = zstandard.ZstdCompressionDict(TAR)
        data = zstandard.ZstdCompressor(dict_data=dictionary).compress(TAR)
        text = await attack.refused(data, error=MalformedPackage)
        assert text.startswith("layer 1: the zstd data is damaged: ")


class TestT50DamagedGzip:
    @pytest.mark.parametrize(
        ("data", "cause"),
        [
            (gz(PACKAGE)[:-9], "the gzip data is cut short"),
            (gz(PACKAGE)[:-8], "the gzip data is cut short"),
            (gz(PACKAGE)[:-1], "the gzip data is cut short"),
            (gz(PACKAGE)[:-8] + bytes(8), "the gzip data is damaged: "),
            (gz(PACKAGE)[:-4] + struct.pack("<I", 7), "the gzip data is damaged: "),
            (gz(PACKAGE) + b"garbage", "the gzip data is followed by something else"),
            (gz(PACKAGE)[:5], "the gzip data is cut short"),
        ],
        ids=["cut", "no trailer", "half a trailer", "CRC", "size", "behind it", "in the header"],
    )
    async def test_t50_is_refused_and_not_fetched_again(self, attack, data, cause):
        text = await attack.refused(data, error=MalformedPackage)
        assert text.startswith(f"layer 1: {cause}")
        assert text.endswith("; build the package again")


STARGZ_FOOTER = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0" + b"0" * 16 + b"STARGZ"
STARGZ_FOOTER += b"\x01\0\0\xff\xff" + bytes(8)


class TestT51UnusualStreams:
    @pytest.mark.parametrize(
        "data",
        [
            gzip.compress(TAR[:700]) + gzip.compress(TAR[700:]),
            b"".join(gzip.compress(TAR[at : at + 512]) for at in range(0, len(TAR), 512)),
            gz(PACKAGE) + bytes(5000),
            gzip.compress(make_tar(member(".no.prefetch.landmark", b"\x0f"), PACKAGE))
            + gzip.compress(make_tar(member("stargz.index.json", b"{}")))
            + STARGZ_FOOTER,
            zstandard.compress(TAR[:700]) + zstandard.compress(TAR[700:]),
            zstandard.compress(TAR) + b"\x50\x2a\x4d\x18\x04\0\0\0toc!",
        ],
        ids=["two members", "many members", "zeros behind", "eStargz", "frames", "zstd:chunked"],
    )
    async def test_t51_is_read(self, attack, data):
        assert await attack.read(data) == YAML


class TestT52MediaTypes:
    @pytest.mark.parametrize("data", [TAR, zstandard.compress(TAR), gz(PACKAGE)])
    @pytest.mark.parametrize("suffix", ["", "+gzip", "+zstd"])
    async def test_t52_bytes_decide(self, attack, data, suffix):
        media_type = f"application/vnd.oci.image.layer.v1.tar{suffix}"
        assert await attack.read(data, media_types=[media_type]) == YAML

    @pytest.mark.parametrize(
        ("data", "name"),
        [
            (b"PK\x03\x04" + bytes(600), "zip"),
            (lzma.compress(TAR), "xz"),
            (b"BZh9" + b"x" * 600, "bzip2"),
            (b"\x04\x22\x4d\x18" + b"x" * 600, "lz4"),
        ],
        ids=["zip", "xz", "bzip2", "lz4"],
    )
    async def test_t52_other_formats_are_named(self, attack, data, name):
        text = await attack.refused(data, error=MalformedPackage)
        assert text.startswith(f"layer 1: is {name}; only gzip, zstd and plain tar archives are")


class TestT53DamagedArchives:
    @pytest.mark.parametrize(
        ("data", "cause"),
        [
            (TAR[:512] + b"x" * 512 + raw_header(size=b"\xff" * 12), "negative or too large"),
            (raw_header(size=b"\x80" + b"\xff" * 11), "negative or too large"),
            (raw_header(size=b"\x80" + bytes(3) + b"\x00\x40" + bytes(6)), "negative or too large"),
            (raw_header(size=b"0000000000x\0"), "a size that is no number"),
            (raw_header(b"a", size=b"77777777777\0") + b"x" * 512, "the archive is cut short"),
            (TAR[:148] + b"0000000\0" + TAR[156:], "damaged"),
            (TAR[:200], "the archive is cut short"),
            (TAR[:1024] + TAR[:300], "the archive is cut short"),
            (TAR[:520], "the archive is cut short"),
            (TAR[:1024] + bytes(512) + TAR[:1024], "a zero block between entries"),
        ],
        ids=[
            "negative",
            "huge",
            "overflow",
            "no number",
            "beyond the end",
            "checksum",
            "first header cut",
            "next header cut",
            "content cut",
            "zeros between",
        ],
    )
    async def test_t53_is_refused_without_a_loop(self, attack, data, cause):
        text = await attack.refused(gzip.compress(data), error=MalformedPackage)
        assert cause in text

    async def test_t53_the_end_mark_may_be_missing_between_entries(self, attack):
        assert await attack.read(gzip.compress(TAR[:1024])) == YAML

    async def test_t53_a_damaged_second_header_does_not_end_the_archive(self, attack):
        damaged = bytearray(make_tar(member("a", b"a"), PACKAGE))
        damaged[1024 + 3] ^= 1
        text = await attack.refused(gzip.compress(bytes(damaged)), error=MalformedPackage)
        assert "the archive is damaged at byte 1536" in text


class TestT54ArchiveBombs:
    async def test_t54_ten_million_empty_entries(self, attack, monkeypatch):
        assert tar.ENTRIES_MAX == 1_000_000
        monkeypatch.setattr(tar, "ENTRIES_MAX", 1000)
        data = gzip.compress(raw_header(b"e", bytes(12)) * 10_000)
        text = await attack.refused(data, error=LimitExceeded)
        assert text == f"layer 1: holds more than 1000 entries; {SMALLER}"

    @pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
    async def test_t54_an_extension_header_of_a_gigabyte(self, attack, kind):
        data = raw_header(b"./pax", b"%011o\0" % 2**30, kind) + bytes(5000)
        text = await attack.refused(gzip.compress(data), error=LimitExceeded)
        assert text == f"layer 1: has an extension header of more than 65536 bytes; {SMALLER}"

    async def test_t54_a_hundred_stacked_long_names(self, attack):
        data = extended(b"L", b"name\0") * 100 + TAR
        text = await attack.refused(gzip.compress(data), error=LimitExceeded)
        assert text == f"layer 1: has more than 16 extension headers for one entry; {SMALLER}"

    @pytest.mark.parametrize(
        "record",
        [
            b"0 path=a\n",
            b"99999999999 path=a\n",
            b"9 path a\n",
            b"x path=a\n",
            b"8 path=a\n",
            b"\xb2 path=a\n",
            b"6 a=b\n" + b"0",
            b"-9 path=a\n",
        ],
    )
    async def test_t54_damaged_pax_records(self, attack, record):
        data = extended(b"x", record) + TAR
        text = await attack.refused(gzip.compress(data), error=MalformedPackage)
        assert "the archive has a damaged pax header" in text


class TestT55Names:
    @pytest.mark.parametrize("name", ["package.yaml", "/package.yaml", ".//./package.yaml"])
    async def test_t55_that_mean_the_file(self, attack, name):
        assert await attack.read(gz(member(name, YAML))) == YAML

    @pytest.mark.parametrize(
        "name", ["PACKAGE.YAML", "package.yaml.bak", " package.yaml", "package.yml", "p\udcff.yaml"]
    )
    async def test_t55_that_do_not(self, attack, name):
        text = await attack.refused(gz(member(name, YAML)), error=PackageNotFound)
        assert "no package.yaml in the image's root directory" in text

    @pytest.mark.parametrize("name", ["../../etc/passwd", "a/../package.yaml", "/.."])
    async def test_t55_that_leave_the_root(self, attack, name):
        text = await attack.refused(gz(member(name, YAML), PACKAGE), error=MalformedPackage)
        assert text.startswith("layer 1: the archive has an unsafe name: ")

    async def test_t55_a_slash_at_the_end_is_a_directory(self, attack):
        text = await attack.refused(gzip.compress(raw_header(b"package.yaml/", bytes(12))))
        assert "package.yaml is a directory, must be a regular file" in text

    async def test_t55_a_zero_byte_in_a_long_name(self, attack):
        data = extended(b"x", b"25 path=package.yaml\0evil\n"[:26]) + TAR
        text = await attack.refused(gzip.compress(data), error=MalformedPackage)
        assert "pax header" in text or "a name with a zero byte" in text

    async def test_t55_a_name_of_4097_bytes(self, attack):
        text = await attack.refused(gz(member("n" * 4097, b""), PACKAGE), error=LimitExceeded)
        assert text == f"layer 1: has a name of more than 4096 bytes; {SMALLER}"

    async def test_t55_control_characters_do_not_reach_the_message(self, attack):
        text = await attack.refused(gz(member("../\x1b[31mred\n", b"")), error=MalformedPackage)
        assert "unsafe name: ../?[31mred?" in text


class TestT56Types:
    @pytest.mark.parametrize(
        ("kind", "link", "name"),
        [
            (tarfile.DIRTYPE, "", "directory"),
            (tarfile.SYMTYPE, "/etc/shadow", "symbolic link"),
            (tarfile.SYMTYPE, "package.yaml", "symbolic link"),
            (tarfile.LNKTYPE, "other", "hard link"),
            (tarfile.FIFOTYPE, "", "fifo"),
            (tarfile.CHRTYPE, "", "character device"),
            (tarfile.BLKTYPE, "", "block device"),
            (tarfile.GNUTYPE_SPARSE, "", "sparse file"),
        ],
    )
    async def test_t56_a_file_that_is_none(self, attack, kind, link, name):
        entry = member("package.yaml", type=kind, linkname=link)
        text = await attack.refused(gz(member("other", YAML), entry), error=MalformedPackage)
        cause = f"package.yaml is a {name}, must be a regular file"
        assert text == f"layer 1: {cause}; build the package again"

    async def test_t56_a_sparse_file_of_pax(self, attack):
        data = extended(b"x", b"22 GNU.sparse.major=1\n") + TAR
        text = await attack.refused(gzip.compress(data), error=MalformedPackage)
        assert "package.yaml is a sparse file" in text


class TestT57TwoFiles:
    async def test_t57_that_differ(self, attack):
        text = await attack.refused(gz(PACKAGE, member("./package.yaml", b"kind: Evil\n")))
        cause = "package.yaml occurs twice with different content"
        assert text == f"layer 1: {cause}; build the package again"

    async def test_t57_that_are_equal(self, attack):
        assert await attack.read(gz(PACKAGE, PACKAGE)) == YAML


class TestT58Sizes:
    async def test_t58_nothing(self, attack):
        text = await attack.refused(gz(member("package.yaml")), error=MalformedPackage)
        assert text == "layer 1: package.yaml is empty; build the package again"

    async def test_t58_comments_alone(self, tmp_path):
        stream = tmp_path / "package.yaml"
        stream.write_bytes(b"---\n# nothing\n---\n")
        with pytest.raises(ManifestError, match="not exactly one package meta type"):
            await parse_in_process(stream, tmp_path / "lines")

    async def test_t58_one_byte_more_than_200_mebibytes(self, attack):
        assert PACKAGE_BYTES_MAX == 200 * MIB
        data = raw_header(size=b"%011o\0" % (200 * MIB + 1)) + bytes(5000)
        text = await attack.refused(gzip.compress(data), error=LimitExceeded)
        cause = f"package.yaml has {200 * MIB + 1} bytes, more than the {200 * MIB} that are read"
        assert text == f"layer 1: {cause}; {SMALLER}"


class TestT59Whiteouts:
    @pytest.mark.parametrize("mark", [".wh.package.yaml", ".wh..wh..opq"])
    async def test_t59_in_an_upper_layer(self, attack, mark):
        text = await attack.refused(gz(PACKAGE), gz(member(mark)), error=PackageNotFound)
        assert text == "layer 2: package.yaml is deleted by this layer"
        assert sum("/blobs/" in path for _, path in attack.requests) == 2  # config and one layer

    @pytest.mark.parametrize("turn", [1, -1])
    async def test_t59_with_the_file_in_the_same_layer(self, attack, turn):
        upper = [member(".wh.package.yaml"), PACKAGE][::turn]
        assert await attack.read(gz(member("package.yaml", b"low")), gz(*upper)) == YAML

    async def test_t59_without_a_name(self, attack):
        text = await attack.refused(gz(PACKAGE), gz(member(".wh.")), error=MalformedPackage)
        assert text == "layer 2: holds a deletion mark without a name; build the package again"


class TestT60Annotations:
    async def test_t60_on_two_layers_the_first_is_used(self, attack):
        layers = (gz(PACKAGE), gz(member("package.yaml", b"kind: Other\n")))
        assert await attack.read(*layers, annotated=[0, 1]) == YAML
        second = Layer("second", annotations=BASE.annotations)
        warning = "2 layers are annotated as base; the first is used"
        assert Search([BASE, second]).warnings == (warning,)

    async def test_t60_on_a_layer_that_is_a_configuration(self, attack):
        kind = "application/vnd.oci.image.config.v1+json"
        text = await attack.refused(b"{}", annotated=[0], media_types=[kind])
        assert text.startswith(f"has a layer of the type '{kind}', which is no image layer")

    async def test_t60_with_another_value_means_nothing(self, attack):
        layers = (gz(member("package.yaml", b"kind: Other\n")), gz(PACKAGE))
        assert await attack.read(*layers, annotated=[0], annotation="BASE") == YAML


async def test_t61_a_nested_file_alone_is_named(attack):
    text = await attack.refused(gz(member("a/package.yaml", YAML)), error=PackageNotFound)
    assert "found elsewhere, where it does not count: a/package.yaml" in text
