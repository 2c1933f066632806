"""OCI layouts: folders and archives, one image of several, and what is refused."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from controller.xpkg import layout as layout_module
from controller.xpkg.archive import Archive, images_in
from controller.xpkg.errors import LimitExceeded, MalformedPackage
from controller.xpkg.image import digest_of
from tests.xpkg.layouts import CONFIG, EMPTY, LAYER, MANIFEST, META, PLAIN, Layout
from tests.xpkg.tars import make_tar, member


@pytest.fixture(params=["folder", "archive", "compressed archive"])
def write(request, tmp_path):
    """Write a layout in one of the forms that are read."""

    def write(layout):
        path = tmp_path / "layout"
        if request.param == "folder":
            return layout.folder(path)
        layout.archive(path)
        if request.param != "archive":
            path.write_bytes(gzip.compress(path.read_bytes()))
        return path

    return write


def refusal(path, choice="", error=MalformedPackage):
    with pytest.raises(error) as caught:
        Archive(path, choice)
    text = str(caught.value)
    assert text.startswith("layout is no package file: ")
    return text


def broken(change):
    """Return a layout of one image, changed."""
    layout = Layout()
    descriptor = layout.image(PLAIN)
    layout.top(descriptor)
    change(layout, descriptor)
    return layout


def path_of(descriptor):
    return f"blobs/sha256/{descriptor['digest'][7:]}"


class TestOneImage:
    def test_is_read(self, write, tmp_path):
        layout = Layout()
        path = write(layout.top(layout.image(PLAIN, EMPTY)))
        with Archive(path) as archive:
            assert archive.meta()["kind"] == "Function"
            assert len(archive.layers) == 2
            archive.stream(tmp_path / "package.yaml")
            assert not archive.examples(tmp_path / "examples.yaml")
        assert (tmp_path / "package.yaml").read_bytes() == META

    def test_its_manifest_is_pushed_as_it_is(self, write):
        layout = Layout()
        descriptor = layout.image(PLAIN)
        with Archive(write(layout.top(descriptor))) as archive:
            assert archive.manifest().digest == descriptor["digest"]
            assert archive.manifest().raw == layout.files[path_of(descriptor)]

    def test_labels_of_the_configuration_become_annotations(self, tmp_path):
        layout = Layout()
        config = layout.image(PLAIN, labels=True)
        document = json.loads(layout.files[path_of(config)])
        for layer in document["layers"]:
            layer.pop("annotations")
        path = layout.top(layout.manifest(document["config"], document["layers"])).folder(tmp_path)
        with Archive(path) as archive:
            pushed = json.loads(archive.manifest().raw)
        assert pushed["layers"][0]["annotations"] == {"io.crossplane.xpkg": "base"}
        assert pushed["annotations"] == {"org.example.kept": "yes"}

    def test_a_folder_leaves_no_file_open(self, tmp_path):
        layout = Layout()
        path = layout.top(layout.image(PLAIN)).folder(tmp_path / "layout")
        with Archive(path) as archive:
            archive.meta()
        open_files = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]  # noqa: PTH208 - names alone
        assert not [file for file in open_files if str(path) in file]

    def test_an_archive_of_docker_25_is_read_as_a_layout(self, tmp_path):
        layout = Layout()
        descriptor = layout.image(PLAIN)
        layout.top(descriptor)
        layout.files["manifest.json"] = b"[]"
        with Archive(layout.archive(tmp_path / "layout")) as archive:
            assert archive.manifest().digest == descriptor["digest"]

    def test_a_layout_without_its_blobs_is_read_as_an_archive_of_docker(self, tmp_path):
        stored = gzip.compress(PLAIN, mtime=0)
        config = json.dumps({"rootfs": {"diff_ids": [digest_of(PLAIN)]}}).encode()
        layout = Layout().top({"mediaType": MANIFEST, "digest": digest_of(b""), "size": 0})
        layout.files |= {
            "c": config,
            "l": stored,
            "manifest.json": b'[{"Config":"c","Layers":["l"]}]',
        }
        with Archive(layout.archive(tmp_path / "layout")) as archive:
            assert archive.meta()["kind"] == "Function"


class TestSeveralImages:
    @pytest.fixture
    def layout(self):
        layout = Layout()
        self.amd, self.arm = (layout.image(PLAIN, architecture=a) for a in ("amd64", "arm64"))
        kind = {"vnd.docker.reference.type": "attestation-manifest"}
        self.other = layout.image(EMPTY, annotations=kind)
        return layout.top(layout.index(self.amd, self.arm, self.other))

    def test_that_of_linux_amd64_is_meant(self, write, layout):
        with Archive(write(layout)) as archive:
            assert archive.manifest().digest == self.amd["digest"]
            assert archive.platform == {"os": "linux", "architecture": "amd64"}

    def test_another_is_chosen_by_platform_or_digest(self, write, layout):
        path = write(layout)
        for choice in ("linux/arm64", self.arm["digest"]):
            with Archive(path, choice) as archive:
                assert archive.manifest().digest == self.arm["digest"]

    def test_all_but_attestations_are_listed(self, write, layout):
        assert images_in(write(layout)) == (self.amd["digest"], self.arm["digest"])

    def test_a_platform_that_is_not_there(self, write, layout):
        text = refusal(write(layout), "linux/s390x")
        assert "it holds no image for linux/s390x, of these: linux/amd64, linux/arm64" in text

    def test_a_tag_chooses(self, tmp_path):
        layout = Layout()
        names = [{"org.opencontainers.image.ref.name": tag} for tag in ("one", "two")]
        first = layout.image(PLAIN, annotations=names[0])
        second = layout.image(PLAIN, EMPTY, annotations=names[1])
        path = layout.top(first, second).folder(tmp_path / "layout")
        with Archive(path, "two") as archive:
            assert archive.manifest().digest == second["digest"]
        assert "several images for this platform or without one, of these: one, two" in refusal(
            path
        )


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "cause"),
        [
            (lambda it, _: it.top(), "it holds no image"),
            (lambda it, _: it.files.update({"index.json": b"[]"}), "index.json lists no manifests"),
            (lambda it, _: it.files.update({"index.json": b"{"}), "index.json is no JSON"),
            (
                lambda it, _: it.files.update({"index.json": b'{"manifests":[],"manifests":[]}'}),
                "a key occurs twice",
            ),
            (
                lambda it, _: it.files.update({"index.json": b"[" * 100_000}),
                "it is nested too deeply",
            ),
            (
                lambda it, _: it.files.update({"oci-layout": b'{"imageLayoutVersion":"9"}'}),
                "oci-layout does not state version 1.0.0",
            ),
            (lambda it, d: it.files.pop(path_of(d)), f"file {'blobs'}"),
            (
                lambda it, d: it.files.update({path_of(d): b"{}"}),
                "other content than its name promises",
            ),
            (lambda it, d: it.top(d | {"size": 1}), "other content than its name promises"),
            (lambda it, d: it.top(d | {"size": -1}), "-1 is no size"),
            (lambda it, d: it.top(d | {"size": True}), "True is no size"),
            (
                lambda it, d: it.top(d | {"digest": "sha256:../../etc/passwd"}),
                "sha256:../../etc/passwd is no digest that is read (sha256)",
            ),
            (
                lambda it, d: it.top(d | {"mediaType": MANIFEST.replace("oci", "x")}),
                "it holds no image",
            ),
            (
                lambda it, d: it.top(
                    d
                    | {
                        "mediaType": MANIFEST.replace("oci.image", "docker.distribution").replace(
                            "v1", "v2"
                        )
                    }
                ),
                "the manifest is of another type than the index says",
            ),
        ],
    )
    def test_what_contradicts_itself(self, write, change, cause):
        assert cause in refusal(write(broken(change)))

    def test_a_layer_that_is_not_there_or_another(self, write):
        def swap(layout, _descriptor):
            layer = gzip.compress(PLAIN, mtime=0)
            layout.files[f"blobs/sha256/{digest_of(layer)[7:]}"] = gzip.compress(EMPTY, mtime=0)

        text = refusal(write(broken(swap)))
        assert "blob sha256:" in text

    def test_a_layer_of_the_same_size_and_other_content(self, write):
        def change(layout, _descriptor):
            layer = gzip.compress(PLAIN, mtime=0)
            changed = layer[:4] + b"\1" + layer[5:]  # the time, which its content does not show
            layout.files[f"blobs/sha256/{digest_of(layer)[7:]}"] = changed

        assert "has other content than its name promises" in refusal(write(broken(change)))

    def test_layers_that_the_configuration_does_not_list(self, write):
        layout = Layout()
        config = layout.blob(b'{"rootfs":{"diff_ids":["sha256:x"]}}', CONFIG)
        layer = layout.blob(gzip.compress(PLAIN), LAYER)
        text = refusal(write(layout.top(layout.manifest(config, [layer]))))
        assert "is not the one the configuration lists" in text

    def test_more_than_127_layers(self, write):
        layout = Layout()
        layer = layout.blob(gzip.compress(PLAIN), LAYER)
        image = layout.manifest(layout.blob(b"{}", CONFIG), [layer] * 128)
        assert "more than 127" in refusal(write(layout.top(image)))

    def test_indexes_within_indexes(self, write):
        layout = Layout()
        entry = layout.image(PLAIN)
        for _ in range(3):
            entry = layout.index(entry)
        assert "indexes are nested deeper than 3 levels" in refusal(write(layout.top(entry)))

    def test_more_images_than_are_read(self, write, monkeypatch):
        monkeypatch.setattr(layout_module, "IMAGES_MAX", 2)
        layout = Layout()
        entry = layout.image(PLAIN)
        index = layout.index(entry, entry)
        text = refusal(write(layout.top(index, entry)), error=LimitExceeded)
        assert text.endswith("lists more than 2 images; make the package smaller, or split it")

    def test_links_in_a_folder_are_not_followed(self, tmp_path):
        layout = Layout()
        descriptor = layout.image(PLAIN)
        path = layout.top(descriptor).folder(tmp_path / "layout")
        blob = path / path_of(descriptor)
        blob.rename(tmp_path / "elsewhere")
        blob.symlink_to(tmp_path / "elsewhere")
        assert "is reached through a link, which is not followed" in refusal(path)
        folder = path / "blobs"
        folder.rename(tmp_path / "blobs")
        folder.symlink_to(tmp_path / "blobs")
        assert "is reached through a link, which is not followed" in refusal(path)

    def test_a_pipe_in_a_folder_is_not_waited_for(self, tmp_path):
        layout = Layout()
        descriptor = layout.image(PLAIN)
        path = layout.top(descriptor).folder(tmp_path / "layout")
        (path / path_of(descriptor)).unlink()
        os.mkfifo(path / path_of(descriptor))
        assert "is no regular file" in refusal(path)

    def test_a_folder_that_is_no_layout(self, tmp_path):
        (tmp_path / "layout").mkdir()
        assert "file manifest.json not found" in refusal(tmp_path / "layout")

    def test_members_beyond_the_limit(self, tmp_path, monkeypatch):
        monkeypatch.setattr("controller.xpkg.members.MEMBERS_MAX", 3)
        path = tmp_path / "layout"
        path.write_bytes(make_tar(*(member(str(n)) for n in range(4))))
        text = refusal(path, error=LimitExceeded)
        assert "holds more than 3 files; make the package smaller" in text


def test_images_of_an_archive_of_docker_are_told_by_their_tags(tmp_path):
    stored = gzip.compress(PLAIN, mtime=0)
    config = json.dumps({"rootfs": {"diff_ids": [digest_of(PLAIN)]}}).encode()
    entries = [{"Config": "c", "RepoTags": [f"x:{n}"], "Layers": ["l"]} for n in range(2)]
    members = [member("c", config), member("l", stored)]
    path = tmp_path / "layout"
    path.write_bytes(make_tar(*members, member("manifest.json", json.dumps(entries).encode())))
    assert images_in(path) == ("x:0", "x:1")
    with Archive(path, "x:1") as archive:
        assert archive.meta()["kind"] == "Function"
    assert "it must contain exactly one image; it holds 2: x:0, x:1" in refusal(path)
    assert "it holds no image with the tag y, but x:0, x:1" in refusal(path, "y")
