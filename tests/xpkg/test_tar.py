"""Tar: what is read, what is refused, and the writer's bytes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.xpkg import tar
from controller.xpkg.compression import Reader
from controller.xpkg.errors import LimitExceeded, MalformedPackage
from controller.xpkg.tar import TarReader, clean_name
from tests.xpkg.tars import make_tar, member, with_checksum

VECTORS = Path(__file__).parents[3] / "shared" / "spec" / "vectors"


def reader(data, budget=10**9):
    return TarReader(Reader(io.BytesIO(data), budget=budget, limit="test"))


def contents(data):
    archive = reader(data)
    return [(entry.name, entry.type_name, b"".join(archive.chunks())) for entry in archive]


def names(data):
    return [entry.name for entry in reader(data)]


def raw(name=b"a", size=b"0000000000", kind=b"0", content=b"", magic=b"ustar\x0000"):
    block = name.ljust(100, b"\0") + b"0000644\x00" * 3 + size.rjust(11, b"0") + b"\0"
    block += b"0" * 11 + b"\0" + b" " * 8 + kind + bytes(100) + magic
    return with_checksum(block.ljust(512, b"\0")) + content + bytes(-len(content) % 512)


def extension(kind, payload):
    return raw(kind=kind, size=b"%o" % len(payload), content=payload)


def pax(*records):
    lines = []
    for record in records:
        length = len(record) + 3
        while len(b"%d %s\n" % (length, record)) != length:
            length += 1
        lines.append(b"%d %s\n" % (length, record))
    return extension(b"x", b"".join(lines))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_all_formats_are_read(kind):
    long_name = "folder/" * 12 + "name"
    data = make_tar(
        member("a", b"one"),
        member(long_name, b"two" * 400),
        member("empty"),
        member("d", type=tarfile.DIRTYPE),
        member("l", type=tarfile.SYMTYPE, linkname="a"),
        format=kind,
    )
    assert contents(data) == [
        (b"a", "file", b"one"),
        (long_name.encode(), "file", b"two" * 400),
        (b"empty", "file", b""),
        (b"d/", "directory", b""),
        (b"l", "symbolic link", b""),
    ]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_very_long_names_are_read(kind):
    name = "n" * 3000
    assert names(make_tar(member(name, b"x"), format=kind)) == [name.encode()]


def test_names_need_not_be_utf8():
    assert names(raw(name=b"\xff\xfe") + tar.END) == [b"\xff\xfe"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (b"0", "file"),
        (b"\0", "file"),
        (b"7", "file"),
        (b"1", "hard link"),
        (b"2", "symbolic link"),
        (b"3", "character device"),
        (b"4", "block device"),
        (b"5", "directory"),
        (b"6", "fifo"),
        (b"S", "sparse file"),
        (b"V", "entry of type b'V'"),
    ],
)
def test_types_of_entries(kind, name):
    assert [e.type_name for e in reader(raw(kind=kind) + tar.END)] == [name]


def test_an_old_directory_is_told_by_its_slash():
    assert [e.type_name for e in reader(raw(name=b"a/") + tar.END)] == ["directory"]


def test_pax_sparse_files_are_told_from_regular_ones():
    data = pax(b"GNU.sparse.major=1", b"path=a") + raw() + tar.END
    assert [(e.name, e.type_name) for e in reader(data)] == [(b"a", "sparse file")]


def test_content_that_is_not_read_is_passed_over():
    assert names(make_tar(member("a", b"x" * 100_000), member("b", b"y"))) == [b"a", b"b"]


@pytest.mark.parametrize("end", [b"", bytes(512), tar.END, tar.END + b"rest" * 500], ids=len)
def test_an_archive_ends_with_zeros_or_between_entries(end):
    assert names(raw() + end) == [b"a"]


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (raw() + raw()[:100], "cut short"),
        (raw(size=b"1000", content=b"x" * 100)[:-1], "cut short"),
        (raw(size=b"1000", content=b"x" * 512)[:800], "cut short"),
        (raw() + b"x" * 512, "checksum that is no number"),
        (raw().replace(b"a", b"b", 1) + tar.END, "damaged at byte"),
        (bytes(512) + raw(), "zero block between"),
        (raw(size=b"9") + tar.END, "size that is no number"),
        (extension(b"x", b"") + tar.END, "ends after an extension header"),
        (extension(b"x", b"path=a\n") + raw(), "damaged pax header"),
        (extension(b"x", b"0 path=a\n") + raw(), "damaged pax header"),
        (extension(b"x", b"99999999999 path=a\n") + raw(), "damaged pax header"),
        (extension(b"x", b"9 pathxx\n") + raw(), "damaged pax header"),
        (pax(b"path=a\0b") + raw(), "name with a zero byte"),
        (pax(b"size=-1") + raw(), "no number or too large"),
        (pax(b"size=1e3") + raw(), "no number or too large"),
        (pax(b"size=99999999999999999") + raw(), "no number or too large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_archives_are_refused(data, cause):
    with pytest.raises(MalformedPackage, match=cause):
        names(data)


@pytest.mark.parametrize("field", [b"\xff" * 12, b"\xc0" + bytes(11), b"\x80\x7f" + bytes(10)])
def test_sizes_in_base_256_that_are_negative_or_huge_are_refused(field):
    block = with_checksum(raw()[:124] + field + raw()[136:512])
    with pytest.raises(MalformedPackage, match="negative or too large"):
        names(block + tar.END)


def test_a_size_in_base_256_is_read():
    field = b"\x80" + (3).to_bytes(11, "big")
    block = with_checksum(raw()[:124] + field + raw()[136:512])
    assert contents(block + b"abc".ljust(512, b"\0") + tar.END) == [(b"a", "file", b"abc")]


def test_the_size_of_a_pax_header_holds():
    assert contents(pax(b"size=3") + raw() + b"abc".ljust(512, b"\0")) == [(b"a", "file", b"abc")]


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (raw(kind=b"x", size=b"%o" % 10**9), "extension header of more than"),
        (raw(kind=b"L", size=b"%o" % 10**9), "extension header of more than"),
        (extension(b"L", b"x") * 17 + raw(), "more than 16 extension headers"),
        (extension(b"L", b"n" * 4097) + raw(), "name of more than 4096 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_headers_beyond_the_limits_are_refused(data, cause):
    with pytest.raises(LimitExceeded, match=cause):
        names(data + tar.END)


def test_the_number_of_entries_is_limited(monkeypatch):
    monkeypatch.setattr(tar, "ENTRIES_MAX", 3)
    with pytest.raises(LimitExceeded, match="more than 3 entries"):
        names(raw() * 4 + tar.END)


def test_what_follows_the_end_counts_against_the_budget():
    with pytest.raises(LimitExceeded):
        list(reader(raw() + tar.END + bytes(10**6), budget=10**5))


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        (b"package.yaml", b"package.yaml"),
        (b"./package.yaml", b"package.yaml"),
        (b".//package.yaml", b"package.yaml"),
        (b"/package.yaml", b"package.yaml"),
        (b"/./a//b/./c", b"a/b/c"),
        (b"PACKAGE.YAML", b"PACKAGE.YAML"),
        (b"./", b""),
    ],
)
def test_names_are_paths_from_the_root(name, clean):
    assert clean_name(name) == clean


@pytest.mark.parametrize("name", [b"../x", b"a/../x", b"/..", b"..", b"a/.."])
def test_names_that_leave_a_folder_are_refused(name):
    with pytest.raises(MalformedPackage, match="unsafe name"):
        clean_name(name)


@given(st.binary(max_size=2048))
@settings(max_examples=200)
def test_any_bytes_are_read_or_refused(data):
    try:
        assert isinstance(names(raw() + data), list)
    except MalformedPackage:
        return


@given(st.integers(0, 511), st.integers(0, 255))
@settings(max_examples=200)
def test_a_changed_byte_in_a_header_is_noticed(position, value):
    data = bytearray(raw(name=b"name") + tar.END)
    if data[position] == value or 148 <= position < 156:
        return
    data[position] = value
    with pytest.raises(MalformedPackage):
        names(bytes(data))


@pytest.mark.parametrize(("name", "content"), [("package.yaml", b"x" * 700), ("a/b.yaml", b"")])
def test_what_the_writer_writes_is_read_by_others(name, content):
    data = tar.header(name, len(content)) + content + tar.padding(len(content)) + tar.END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (info,) = archive.getmembers()
    assert (info.name, info.size, info.mode, info.mtime) == (name, len(content), 0o644, 0)
    assert (info.uid, info.gid, info.uname, info.gname) == (0, 0, "", "")


@pytest.mark.parametrize(
    ("file", "name", "content"),
    [
        ("base.tar", "package.yaml", None),
        ("upbound.tar", ".up/examples.yaml", b"---\na: b\n"),
    ],
)
def test_the_writers_bytes_are_those_of_the_reference_builder(file, name, content):
    if not VECTORS.is_dir():
        pytest.skip(f"needs the golden vectors in {VECTORS}")
    if content is None:
        content = (VECTORS / "package.yaml").read_bytes()
    written = tar.header(name, len(content)) + content + tar.padding(len(content)) + tar.END
    assert written == (VECTORS / file).read_bytes()


def test_the_writer_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="does not fit"):
        tar.header("n" * 101, 1)
    with pytest.raises(ValueError, match="does not fit"):
        tar.header("n", 8**11)
