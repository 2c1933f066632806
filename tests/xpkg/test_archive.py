"""Archives: finding, reading with all checks, and writing ``.xpkg`` files."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
import zstandard

from controller.xpkg.archive import Archive, build_path, find_xpkg, write_archive
from controller.xpkg.errors import LimitExceeded, MalformedPackage, PackageNotFound, XpkgError
from controller.xpkg.image import digest_of
from tests.xpkg.tars import digest, docker_archive, make_tar, member

VECTORS = Path(__file__).parents[3] / "shared" / "spec" / "vectors"
META = b"apiVersion: meta.pkg.crossplane.io/v1\nkind: Function\nmetadata: {name: f}\n"
PLAIN = make_tar(member("package.yaml", META))
STORED = gzip.compress(PLAIN, mtime=0)
NAME = f"{digest(STORED)[7:]}.tar.gz"


@pytest.fixture
def golden():
    path = VECTORS / "golden.xpkg"
    if not path.is_file():
        pytest.skip(f"needs the golden vectors in {VECTORS}")
    return path


def write(tmp_path, data):
    path = tmp_path / "p.xpkg"
    path.write_bytes(data)
    return path


def refusal(tmp_path, data, error=MalformedPackage):
    with pytest.raises(error) as caught:
        Archive(write(tmp_path, data))
    assert str(caught.value).startswith("p.xpkg is no package file: ")
    return str(caught.value).removeprefix("p.xpkg is no package file: ")


def raw_archive(config, index):
    members = [member("config.json", config), member(NAME, STORED), member("manifest.json", index)]
    return make_tar(*members)


INDEX = json.dumps([{"Config": "config.json", "Layers": [NAME]}]).encode()


class TestFindXpkgInDir:
    def test_no_match(self, tmp_path):
        with pytest.raises(PackageNotFound) as caught:
            find_xpkg(tmp_path)
        assert str(caught.value) == "directory does not contain a compiled crossplane package"

    def test_multi_match(self, tmp_path):
        (tmp_path / "one.xpkg").touch()
        (tmp_path / "two.xpkg").touch()
        with pytest.raises(PackageNotFound) as caught:
            find_xpkg(tmp_path)
        assert str(caught.value) == "directory contains multiple compiled crossplane packages"

    def test_not_exist(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            find_xpkg(tmp_path / "test")

    def test_not_dir(self, tmp_path):
        (tmp_path / "test").touch()
        with pytest.raises(NotADirectoryError):
            find_xpkg(tmp_path / "test")

    def test_successful(self, tmp_path):
        (tmp_path / "one.xpkg").touch()
        (tmp_path / "folder.xpkg").mkdir()
        (tmp_path / "below").mkdir()
        (tmp_path / "below/two.xpkg").touch()
        assert find_xpkg(tmp_path) == tmp_path / "one.xpkg"


class TestBuildPath:
    def test_no_extension(self):
        assert build_path(Path("path/to/somewhere"), "test") == Path("path/to/somewhere/test.xpkg")

    def test_replace_extension_name(self):
        path = build_path(Path("path/to/somewhere"), "test.tar")
        assert path == Path("path/to/somewhere/test.xpkg")

    def test_replace_extension_path(self):
        assert build_path(Path("path/to/somewhere.tar"), "") == Path("path/to/somewhere.xpkg")

    def test_another_extension(self):
        assert build_path(Path("d"), "out.tar", ".gz") == Path("d/out.gz")


class TestReading:
    def test_the_file_of_the_reference_builder(self, golden):
        with Archive(golden) as archive:
            base, examples = archive.layers
            assert base.annotations == {"io.crossplane.xpkg": "base"}
            assert examples.annotations == {"io.crossplane.xpkg": "upbound"}
            assert (base.size, examples.size, archive.config.size) == (177, 115, 555)
            assert base.hex.startswith("bab272d7")
            assert archive.config.hex.startswith("9aae36b3")
            assert archive.meta()["metadata"] == {"name": "demo"}
            assert archive.blobs == (base, examples, archive.config)

    def test_blobs_are_written_out_as_they_are(self, golden, tmp_path):
        with Archive(golden) as archive:
            for blob in archive.blobs:
                archive.extract(blob, tmp_path / "blob")
                assert digest_of((tmp_path / "blob").read_bytes()) == blob.digest

    @pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
    def test_archives_may_be_compressed(self, tmp_path, compress):
        data = compress(docker_archive({NAME: STORED}, [digest(PLAIN)]))
        with Archive(write(tmp_path, data)) as archive:
            assert archive.meta()["kind"] == "Function"

    @pytest.mark.parametrize(
        ("name", "stored", "media_type"),
        [
            ("a/layer.tar", PLAIN, "application/vnd.oci.image.layer.v1.tar"),
            (NAME, STORED, "application/vnd.oci.image.layer.v1.tar+gzip"),
            (f"blobs/sha256/{NAME[:64]}", STORED, "application/vnd.oci.image.layer.v1.tar+gzip"),
            (
                "l.tar.zst",
                zstandard.compress(PLAIN),
                "application/vnd.oci.image.layer.v1.tar+zstd",
            ),
        ],
    )
    def test_layers_of_all_compressions_and_names(self, tmp_path, name, stored, media_type):
        data = docker_archive({name: stored}, [digest(PLAIN)])
        with Archive(write(tmp_path, data)) as archive:
            (layer,) = archive.layers
            assert (layer.media_type, layer.digest) == (media_type, digest(stored))
            assert archive.meta()["kind"] == "Function"

    def test_layers_may_be_links_within_the_archive(self, tmp_path):
        config = json.dumps({"rootfs": {"diff_ids": [digest(PLAIN)] * 3}}).encode()
        index = [{"Config": "config.json", "Layers": ["a/l.tar", "b/l.tar", "c/l.tar"]}]
        data = make_tar(
            member("config.json", config),
            member("a/l.tar", PLAIN),
            member("b/l.tar", type=tarfile.SYMTYPE, linkname="../a/l.tar"),
            member("c/l.tar", type=tarfile.LNKTYPE, linkname="b/l.tar"),
            member("manifest.json", json.dumps(index).encode()),
        )
        with Archive(write(tmp_path, data)) as archive:
            assert len(archive.layers) == 3
            assert archive.blobs == (archive.layers[0], archive.config)

    def test_an_image_without_layers_holds_no_package(self, tmp_path):
        with Archive(write(tmp_path, docker_archive({}, []))) as archive:
            assert archive.layers == ()
            with pytest.raises(PackageNotFound, match="the image is entirely empty"):
                archive.meta()

    def test_a_package_without_metadata(self, tmp_path):
        plain = make_tar(member("package.yaml", b"a: 1\n"))
        path = write(tmp_path, docker_archive({"l": plain}, [digest(plain)]))
        with Archive(path) as archive, pytest.raises(XpkgError, match="holds no package metadata"):
            archive.meta()

    def test_a_package_that_is_no_yaml(self, tmp_path):
        plain = make_tar(member("package.yaml", b"a: [\n"))
        path = write(tmp_path, docker_archive({"l": plain}, [digest(plain)]))
        cause = r"package\.yaml: document 1, line 2"
        with Archive(path) as archive, pytest.raises(MalformedPackage, match=cause):
            archive.meta()

    def test_a_file_that_changes_meanwhile(self, tmp_path):
        large = make_tar(member("a", b"x" * 200_000))
        path = write(tmp_path, docker_archive({"l.tar": large}, [digest(large)]))
        with Archive(path) as archive:
            path.write_bytes(path.read_bytes().replace(b"x", b"y"))
            with pytest.raises(MalformedPackage, match="changed while it was read"):
                archive.extract(archive.layers[0], tmp_path / "blob")
        assert not (tmp_path / "blob").exists()


class TestRefused:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            Archive(tmp_path / "nothing.xpkg")

    @pytest.mark.parametrize(
        ("data", "cause"),
        [
            (b"not a tar", "is not a tar archive, compressed or not"),
            (b"", "file manifest.json not found in tar"),
            (make_tar(member("a")), "file manifest.json not found in tar"),
            (make_tar(member("oci-layout")), "file manifest.json not found in tar"),
            (make_tar(member("manifest.json", b"[")), "manifest.json is no JSON"),
            (make_tar(member("manifest.json", b"[]")), "it must contain exactly one image"),
            (make_tar(member("manifest.json", b"[{},{}]")), "it must contain exactly one image"),
            (make_tar(member("manifest.json", b"[{}]")), "manifest.json has no Config"),
            (make_tar(member("manifest.json", b'[{"Config":"c"}]')), "file c not found in tar"),
            (make_tar(member("a"), member("./a")), "file a occurs twice"),
            (make_tar(member("../a")), "unsafe name"),
            (make_tar(member("a", type=tarfile.FIFOTYPE)), "file a is a fifo"),
            (raw_archive(b"x", INDEX), "the configuration is no JSON"),
            (raw_archive(b"{}", INDEX), "does not list the layers of the archive"),
            (raw_archive(b"[]", INDEX), "does not list the layers of the archive"),
            (
                raw_archive(b"{}", b'[{"Config":"config.json","Layers":{"a":1}}]'),
                "lists no layers, or more than 127",
            ),
            (
                docker_archive({NAME: STORED}, [digest(b"other")]),
                "is not the one the configuration lists",
            ),
            (
                docker_archive({f"{'0' * 64}.tar.gz": STORED}, [digest(PLAIN)]),
                "does not have the content its name promises",
            ),
            (
                docker_archive({f"blobs/sha256/{'0' * 64}": STORED}, [digest(PLAIN)]),
                "does not have the content its name promises",
            ),
            (docker_archive({"l": STORED[:-5]}, [digest(PLAIN)]), "layer l the gzip data is cut"),
            (docker_archive({"l": STORED}, [digest(PLAIN)])[:2200], "cut short"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_no_archive_of_one_image(self, tmp_path, data, cause):
        assert cause in refusal(tmp_path, data)

    def test_links_without_an_end(self, tmp_path):
        links = [member(a, type=tarfile.SYMTYPE, linkname=b) for a, b in ("ab", "ba")]
        index = json.dumps([{"Config": "a", "Layers": []}]).encode()
        data = make_tar(*links, member("manifest.json", index))
        assert "chain of links without an end" in refusal(tmp_path, data)

    def test_links_out_of_the_archive(self, tmp_path):
        link = member("a", type=tarfile.SYMTYPE, linkname="../../etc/passwd")
        index = json.dumps([{"Config": "a", "Layers": []}]).encode()
        data = make_tar(link, member("manifest.json", index))
        assert "not found in tar" in refusal(tmp_path, data)

    def test_too_many_layers(self, tmp_path):
        index = json.dumps([{"Config": "config.json", "Layers": [NAME] * 128}]).encode()
        assert "more than 127" in refusal(tmp_path, raw_archive(b"{}", index))

    def test_a_large_index(self, tmp_path):
        data = make_tar(member("manifest.json", b" " * (4 * 2**20 + 1)))
        assert "is larger than" in refusal(tmp_path, data, error=LimitExceeded)


class TestWriting:
    def test_the_bytes_are_those_of_the_reference_builder(self, golden, tmp_path):
        out = io.BytesIO()
        with Archive(golden) as archive:
            layers = []
            for number, blob in enumerate(archive.layers):
                archive.extract(blob, tmp_path / str(number))
                layers.append((blob, io.BytesIO((tmp_path / str(number)).read_bytes())))
            write_archive(out, archive.config_raw, layers)
        assert out.getvalue() == golden.read_bytes()

    def test_the_manifest_for_a_push_has_oci_types_and_annotations(self, golden):
        with Archive(golden) as archive:
            pushed = archive.manifest()
            assert pushed.digest == digest_of(pushed.raw)
            manifest = json.loads(pushed.raw)
            config = archive.config
        assert manifest["schemaVersion"] == 2
        assert manifest["mediaType"] == pushed.media_type
        assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        assert manifest["config"] == {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.digest,
            "size": 555,
        }
        roles = [layer["annotations"]["io.crossplane.xpkg"] for layer in manifest["layers"]]
        assert roles == ["base", "upbound"]
