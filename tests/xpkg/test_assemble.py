"""A package upon a runtime image, without compression, and with examples from elsewhere."""

from __future__ import annotations

import gzip
import json

import pytest
import zstandard

from controller.xpkg.archive import Archive
from controller.xpkg.build import build
from controller.xpkg.errors import BuildError
from controller.xpkg.image import digest_of
from tests.xpkg.layouts import Layout
from tests.xpkg.tars import make_tar, member, tree
from tests.xpkg.test_build import META

FUNCTION = META.format(kind="Function", name="demo")
BINARY = make_tar(member("function", b"\x7fELF"))
FILES = make_tar(member("etc/passwd", b"nobody"))


@pytest.fixture
def root(tmp_path):
    files = {"crossplane.yaml": FUNCTION, "examples/e.yaml": "kind: Example\n"}
    return tree(tmp_path / "root", files)


@pytest.fixture
def runtime(tmp_path):
    """An image for linux/arm64 with settings, in an archive of ``docker save``."""
    settings = {"Entrypoint": ["/function"], "Labels": {"a": "b", "io.crossplane.xpkg:old": "base"}}
    config = {
        "architecture": "arm64",
        "os": "linux",
        "variant": "v8",
        "created": "2024-01-01T00:00:00Z",
        "config": settings,
        "history": [{"created_by": "one"}, {"created_by": "two"}],
        "rootfs": {"type": "layers", "diff_ids": [digest_of(FILES), digest_of(BINARY)]},
    }
    stored = {"a/layer.tar": FILES, "b/layer.tar": gzip.compress(BINARY, mtime=0)}
    index = [{"Config": "c.json", "RepoTags": ["f:v1"], "Layers": list(stored)}]
    members = [member("c.json", json.dumps(config).encode())]
    members += [member(name, data) for name, data in stored.items()]
    path = tmp_path / "runtime.tar"
    path.write_bytes(make_tar(*members, member("manifest.json", json.dumps(index).encode())))
    return path


def built_upon(root, runtime, **how):
    with Archive(runtime) as image:
        return build(root, runtime=image, **how)


class TestRuntime:
    def test_the_package_stands_above_it(self, root, runtime, tmp_path):
        built = built_upon(root, runtime)
        with Archive(built.path) as archive:
            assert archive.manifest().digest == built.digest
            assert archive.meta()["metadata"]["name"] == "demo"
            assert archive.examples(tmp_path / "examples")
            roles = [layer.annotations.get("io.crossplane.xpkg") for layer in archive.layers]
        assert roles == [None, None, "base", "upbound"]

    def test_its_settings_are_kept_and_the_layers_are_added(self, root, runtime):
        with Archive(built_upon(root, runtime).path) as archive:
            config = archive.config_json
            base, examples = archive.layers[2:]
            assert archive.platform == {"os": "linux", "architecture": "arm64", "variant": "v8"}
        assert config["created"] == "2024-01-01T00:00:00Z"
        assert config["config"]["Entrypoint"] == ["/function"]
        assert config["config"]["Labels"] == {
            "a": "b",
            f"io.crossplane.xpkg:{base.digest}": "base",
            f"io.crossplane.xpkg:{examples.digest}": "upbound",
        }
        assert [each.get("created_by") for each in config["history"]] == ["one", "two", None, None]
        assert config["rootfs"]["diff_ids"][:2] == [digest_of(FILES), digest_of(BINARY)]
        assert len(config["rootfs"]["diff_ids"]) == 4

    def test_all_layers_are_compressed_alike(self, root, runtime):
        with Archive(built_upon(root, runtime).path) as archive:
            assert {layer.media_type[-5:] for layer in archive.layers} == {"+gzip"}
            stored = gzip.compress(BINARY, mtime=0)
            assert archive.layers[1].digest == digest_of(stored)  # taken as it is
        with Archive(built_upon(root, runtime, compression="plain").path) as archive:
            assert {layer.media_type[-4:] for layer in archive.layers} == {".tar"}
            assert archive.layers[1].digest == digest_of(BINARY)

    def test_the_same_sources_give_the_same_bytes(self, root, runtime, tmp_path):
        files = [tmp_path / name for name in ("one.xpkg", "two.xpkg")]
        digests = {built_upon(root, runtime, output=file).digest for file in files}
        assert len(digests) == 1
        assert files[0].read_bytes() == files[1].read_bytes()

    def test_it_may_be_an_oci_layout_with_zstd(self, root, tmp_path):
        layout = Layout()
        config = {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"diff_ids": [digest_of(BINARY)]},
        }
        kind = "application/vnd.oci.image.config.v1+json"
        layer = "application/vnd.oci.image.layer.v1.tar+zstd"
        image = layout.manifest(
            layout.blob(json.dumps(config).encode(), kind),
            [layout.blob(zstandard.compress(BINARY), layer)],
        )
        built = built_upon(root, layout.top(image).folder(tmp_path / "layout"))
        with Archive(built.path) as archive:
            assert archive.meta()["kind"] == "Function"
            assert archive.layers[0].media_type.endswith("+gzip")

    def test_a_package_upon_a_package_is_the_upper_one(self, root, runtime, tmp_path):
        lower = built_upon(root, runtime)
        upper = META.format(kind="Function", name="upper")
        built = built_upon(tree(tmp_path / "upper", {"crossplane.yaml": upper}), lower.path)
        with Archive(built.path) as archive:
            assert archive.meta()["metadata"]["name"] == "upper"
            roles = [layer.annotations.get("io.crossplane.xpkg") for layer in archive.layers]
        assert roles == [None, None, None, None, "base"]

    def test_a_configuration_is_never_run(self, runtime, tmp_path):
        meta = META.format(kind="Configuration", name="demo")
        built = built_upon(tree(tmp_path / "c", {"crossplane.yaml": meta}), runtime)
        assert "a Configuration is never run: its runtime is of no use" in built.warnings

    def test_layers_that_leave_no_room(self, root, tmp_path):
        layout = Layout()
        layout.top(layout.image(*[BINARY] * 126))
        with pytest.raises(BuildError, match="has 126 layers, more than the 125 that leave room"):
            built_upon(root, layout.folder(tmp_path / "layout"))
        assert list(root.glob("*.xpkg")) == []


class TestExamples:
    def test_of_another_folder_below_the_root(self, root, tmp_path):
        tree(root, {"docs/[a]/x.yaml": "kind: Other\n"})
        (root / "examples" / "e.yaml").unlink()
        built = build(root, examples_root=root / "docs" / "[a]")
        with Archive(built.path) as archive:
            archive.examples(tmp_path / "examples")
        assert (tmp_path / "examples").read_text() == "---\nkind: Other\n"

    def test_of_a_folder_elsewhere(self, root, tmp_path):
        tree(tmp_path / "elsewhere", {"x.yaml": "kind: Other\n"})
        (root / "examples" / "e.yaml").unlink()
        with Archive(build(root, examples_root=tmp_path / "elsewhere").path) as archive:
            archive.examples(tmp_path / "examples")
        assert (tmp_path / "examples").read_text() == "---\nkind: Other\n"

    def test_in_no_folder(self, root, tmp_path):
        with pytest.raises(BuildError, match="gone is no folder"):
            build(root, examples_root=tmp_path / "gone")
        with pytest.raises(BuildError, match="is the package root: it would hold no package"):
            build(root, examples_root=root)

    def test_a_package_without_any(self, root, tmp_path):
        (root / "examples" / "e.yaml").unlink()
        with Archive(build(root).path) as archive:
            assert not archive.examples(tmp_path / "examples")
        assert not (tmp_path / "examples").exists()
