"""Golden vectors: the reference builder's file, and what its flattening makes of odd layers.

Each case of ``ggcr-extract-semantics.txt`` is read here as well. Where the outcome differs from the
reference, the OCI image specification or safety asks for it, and the reason stands beside it.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from typing import Any

import pytest

from controller.xpkg.archive import Archive
from controller.xpkg.build import build
from controller.xpkg.errors import MalformedPackage, PackageNotFound
from controller.xpkg.image import digest_of
from tests.xpkg.tars import make_tar, member, tree
from tests.xpkg.test_archive import VECTORS

pytestmark = pytest.mark.skipif(not VECTORS.is_dir(), reason=f"needs the vectors in {VECTORS}")

P = "package.yaml"
LINK = {"type": tarfile.SYMTYPE}
DELETED = (PackageNotFound, "is deleted by this layer")
# Layers from the lowest, what the reference reads as package.yaml in the root (None: nothing), and
# what is read here: its content, or an error and a part of its text.
CASES: dict[str, tuple[list[list[tuple[Any, ...]]], str | None, Any]] = {
    "upper wins": ([[(P, "low")], [(P, "up")]], "up", "up"),
    # The specification forbids duplicates: tools would disagree about what the package is.
    "dup in layer": ([[(P, "1"), (P, "2")]], "1", (MalformedPackage, "occurs twice")),
    "dup ./ and /": (
        [[("./" + P, "1"), ("/" + P, "2")]],
        "1",
        (MalformedPackage, "occurs twice"),
    ),
    "wh upper": ([[(P, "low")], [(".wh." + P, "")]], None, DELETED),
    # Whiteouts hide files of lower layers only, whatever the order in their own.
    "wh then file same layer": ([[(".wh." + P, ""), (P, "1")]], None, "1"),
    "file then wh same layer": ([[(P, "1"), (".wh." + P, "")]], "1", "1"),
    "opaque root upper": ([[(P, "low")], [(".wh..wh..opq", ""), ("x", "x")]], None, DELETED),
    "opaque root after file same layer": ([[(P, "1"), (".wh..wh..opq", "")]], "1", "1"),
    "bare .wh. upper": (
        [[(P, "low")], [(".wh.", "")]],
        None,
        (MalformedPackage, "a deletion mark without a name"),
    ),
    # An empty package for a link would hide that something is wrong.
    "symlink abs": (
        [[(P, "", LINK | {"linkname": "/etc/shadow"})]],
        "",
        (MalformedPackage, "is a symbolic link"),
    ),
    # The reference drops the link and shows the lower file again.
    "symlink rel escape": (
        [[(P, "low")], [(P, "", LINK | {"linkname": "../../x"})]],
        "low",
        (MalformedPackage, "is a symbolic link"),
    ),
    "hardlink": (
        [[("a", "A"), (P, "", {"type": tarfile.LNKTYPE, "linkname": "a"})]],
        "",
        (MalformedPackage, "is a hard link"),
    ),
    # The cause is named, where the reference finds nothing.
    "traversal": ([[("../" + P, "evil")]], None, (MalformedPackage, "an unsafe name")),
    "upper file hides lower dir": (
        [[("d/" + P, "nested")], [("d", "f")]],
        None,
        (PackageNotFound, "no package.yaml in the image's root"),
    ),
    # The specification of packages asks for the root.
    "nested first": ([[(P, "root")], [("usr/share/" + P, "nested")]], "nested", "root"),
    # The marks of an old file system are files like others.
    "aufs meta": ([[(P, "low")], [(".wh..wh.plnk", ""), (".wh..wh.aufs", "")]], None, "low"),
    "fifo": ([[(P, "", {"type": tarfile.FIFOTYPE})]], "", (MalformedPackage, "is a fifo")),
}


def vector_lines() -> dict[str, str]:
    """Return what the reference's flattening showed, by case."""
    text = (VECTORS / "ggcr-extract-semantics.txt").read_text()
    return {line[:44].strip(): line[44:].strip() for line in text.splitlines() if line.strip()}


def image_of(layers: list[list[tuple[Any, ...]]]) -> bytes:
    """Return an archive of ``docker save`` with these layers, the lowest first."""
    stored = {}
    diff_ids = []
    for number, entries in enumerate(layers):
        plain = make_tar(
            *(member(name, text.encode(), **dict(*more)) for name, text, *more in entries)
        )
        stored[f"layer-{number}"] = gzip.compress(plain, mtime=0)
        diff_ids.append(digest_of(plain))
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    index = [{"Config": "config.json", "RepoTags": None, "Layers": list(stored)}]
    members = [member("config.json", config), *(member(n, d) for n, d in stored.items())]
    return make_tar(*members, member("manifest.json", json.dumps(index).encode()))


def test_every_vector_has_a_case():
    assert set(vector_lines()) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_flattening(tmp_path, name):
    layers, reference, expected = CASES[name]
    shown = vector_lines()[name]
    if reference is None:
        assert f'{P}[0]="' not in shown.replace(f"/{P}", "")
    else:
        assert f"{P}[" in shown
        assert f']="{reference}"' in shown
    path = tmp_path / "p.xpkg"
    path.write_bytes(image_of(layers))
    with Archive(path) as archive:
        if isinstance(expected, str):
            archive.stream(tmp_path / P)
            assert (tmp_path / P).read_text() == expected
        else:
            error, part = expected
            with pytest.raises(error, match=part):
                archive.stream(tmp_path / P)
            assert not (tmp_path / P).exists()


class TestGoldenFile:
    """The file that the reference builder makes of one Configuration with one example."""

    @pytest.fixture
    def built(self, tmp_path):
        meta = (VECTORS / P).read_text().removeprefix("---\n").removesuffix("---\n")
        files = {"crossplane.yaml": meta, "examples/example.yaml": "a: b\n"}
        return build(tree(tmp_path / "root", files))

    def test_the_plain_layers_are_the_same_bytes(self, built):
        with Archive(built.path) as ours, Archive(VECTORS / "golden.xpkg") as golden:
            assert ours.config_json["rootfs"] == golden.config_json["rootfs"]

    def test_without_compression_they_are_stored_as_they_are(self, built, tmp_path):
        plain = build(built.path.parent, compression="plain", output=tmp_path / "plain.xpkg")
        with Archive(plain.path) as archive:
            for blob, name in zip(archive.layers, ("base.tar", "upbound.tar"), strict=True):
                archive.extract(blob, tmp_path / "layer")
                assert (tmp_path / "layer").read_bytes() == (VECTORS / name).read_bytes()

    def test_the_configuration_differs_in_the_digests_of_layers_alone(self, built):
        with Archive(built.path) as ours, Archive(VECTORS / "golden.xpkg") as golden:
            raw = ours.config_raw
            for our_layer, their_layer in zip(ours.layers, golden.layers, strict=True):
                raw = raw.replace(our_layer.hex.encode(), their_layer.hex.encode())
            mine, theirs = json.loads(raw), json.loads(golden.config_raw)
        assert mine == theirs
        assert list(mine) == list(theirs)

    def test_the_file_differs_in_the_compression_alone(self, built):
        with tarfile.open(built.path) as ours, tarfile.open(VECTORS / "golden.xpkg") as golden:
            pairs = list(zip(ours.getmembers(), golden.getmembers(), strict=True))
        assert len(pairs) == 4
        for mine, theirs in pairs:
            for attribute in ("mode", "uid", "gid", "mtime", "type", "uname", "gname"):
                assert getattr(mine, attribute) == getattr(theirs, attribute)
            assert mine.name.partition(":")[1] == theirs.name.partition(":")[1]
            assert len(mine.name) == len(theirs.name)

    def test_its_manifest_with_dockers_types_has_the_same_bytes(self):
        with Archive(VECTORS / "golden.xpkg") as golden:
            plain = [type(each)(each.digest, each.size, each.media_type) for each in golden.layers]
            golden.layers = tuple(plain)  # the reference's file is without annotations
            manifest = golden.manifest(docker=True)
        assert len(manifest.raw) == 583
        assert manifest.digest.startswith("sha256:bb389895")
        assert manifest.digest.endswith("ae1b")
