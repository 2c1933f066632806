"""``extract``: the content of a package file, to a folder or a compressed file."""

from __future__ import annotations

import gzip

import pytest

from tests.xpkg.layouts import EMPTY, META, PLAIN, Layout

PACKAGE = """apiVersion: meta.pkg.crossplane.io/v1
kind: Configuration
metadata:
  name: demo
"""
STREAM = f"---\n{PACKAGE}---\n".encode()


@pytest.fixture
def built(crossdock, tmp_path):
    """A package file with an example, alone in the session's folder."""
    (tmp_path / "crossplane.yaml").write_text(PACKAGE)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "e.yaml").write_text("kind: Example\n")
    assert crossdock("build", "-o", "demo.xpkg").code == 0
    return tmp_path / "demo.xpkg"


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    "words",
    [["extract"], ["extract", "demo.xpkg"], ["xpkg", "extract", "--from-xpkg", "demo.xpkg"]],
)
def test_a_compressed_file_is_written(crossdock, tmp_path, words):
    answer = crossdock(*words)
    assert (answer.code, answer.out, answer.err) == (0, "out.gz\n", "")
    assert gzip.decompress((tmp_path / "out.gz").read_bytes()) == STREAM


@pytest.mark.usefixtures("built")
def test_equal_packages_give_equal_files(crossdock, tmp_path):
    for name in ("one", "two.yaml", "three.gz"):
        crossdock("extract", "-o", name)
    assert crossdock("extract", "-o", "one").out == "one.gz\n"
    contents = {(tmp_path / f"{name}.gz").read_bytes() for name in ("one", "two", "three")}
    assert len(contents) == 1


@pytest.mark.usefixtures("built")
def test_a_folder_gets_the_examples_too(crossdock, tmp_path):
    answer = crossdock("extract", "-o", "out/")
    assert answer.out == "out/package.yaml\nout/examples.yaml\n"
    assert (tmp_path / "out" / "package.yaml").read_bytes() == STREAM
    assert (tmp_path / "out" / "examples.yaml").read_text() == "---\nkind: Example\n"
    assert crossdock("extract", "-o", "out").code == 0  # it is there now


def test_an_oci_layout_in_a_folder(crossdock, tmp_path):
    layout = Layout()
    layout.top(layout.image(PLAIN)).folder(tmp_path / "layout")
    assert crossdock("extract", "layout", "-o", "out/").out == "out/package.yaml\n"
    assert (tmp_path / "out" / "package.yaml").read_bytes() == META


def test_an_image_that_is_no_package(crossdock, tmp_path):
    layout = Layout()
    layout.top(layout.image(EMPTY)).archive(tmp_path / "image.tar")
    answer = crossdock("extract", "image.tar")
    assert answer.code == 1
    assert "image.tar: no package.yaml in the layer annotated as base" in answer.err
    assert not (tmp_path / "out.gz").exists()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 1, "directory does not contain a compiled crossplane package"),
        (["gone.xpkg"], 1, "cannot read gone.xpkg: no such file or directory"),
        (["--from-xpkg", "gone"], 1, "cannot read gone: no such file or directory"),
        (["acme/nop:v1"], 2, "it names no registry"),
        (["reg.io/acme/nop"], 2, "it names no tag or digest"),
        (["--from-daemon", "nop"], 2, "docker save -o FILE IMAGE"),
    ],
)
def test_what_cannot_be_read(crossdock, tmp_path, words, code, text):
    answer = crossdock("extract", *words)
    assert answer.code == code
    assert text in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("built")
def test_a_place_that_cannot_be_written(crossdock, tmp_path):
    answer = crossdock("extract", "-o", "gone/out.gz")
    assert answer.code == 1
    assert "cannot write gone/out.gz: no such file or directory; choose another place with -o" in (
        answer.err
    )
