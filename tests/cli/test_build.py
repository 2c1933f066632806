"""``build``: what a person sees; what is in the file is the business of ``tests/xpkg``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from controller.xpkg.archive import Archive
from tests.xpkg.layouts import EMPTY, Layout

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"


@pytest.fixture
def provider(tmp_path):
    """The folder of the example provider, below the session's folder."""
    return Path(shutil.copytree(EXAMPLES / "provider-demo", tmp_path / "provider"))


@pytest.mark.parametrize("words", [["build"], ["build", "provider"], ["xpkg", "build"]])
def test_file_and_digest_are_printed(crossdock, provider, tmp_path, words):
    answer = crossdock(*words, "-f", "provider")
    assert (answer.code, answer.err) == (0, "")
    path, digest = answer.out.splitlines()
    assert path == f"provider/provider-demo-{digest.removeprefix('sha256:')[:12]}.xpkg"
    with Archive(tmp_path / path) as archive:
        assert archive.manifest().digest == digest


def test_the_same_folder_gives_the_same_file(crossdock, provider):
    first = crossdock("build", folder=provider)
    assert crossdock("build", "--package-root", ".", folder=provider) == first


def test_name_and_output_choose_the_file(crossdock, provider, tmp_path):
    named = crossdock("build", "-f", "provider", "--name", "other").out.splitlines()[0]
    assert named.startswith("provider/other-")
    crossdock("build", "-f", "provider", "-o", "mine.xpkg")
    assert (tmp_path / "mine.xpkg").is_file()


def test_ignored_paths_are_repeatable_and_comma_lists(crossdock, provider):
    (provider / "broken.yaml").write_text("a: [")
    (provider / "more").mkdir()
    (provider / "more" / "broken.yaml").write_text("a: [")
    assert crossdock("build", "-f", "provider").code == 1
    assert crossdock("build", "-f", "provider", "--ignore", "broken.yaml,more").code == 0
    words = ["--ignore", "broken.yaml", "--ignore", "more"]
    assert crossdock("build", "-f", "provider", *words).code == 0


def test_another_kind_is_refused(crossdock, provider):
    answer = crossdock("build", "configuration", "-f", "provider")
    assert answer.code == 1
    assert "package meta type is not Configuration" in answer.err
    assert list(provider.glob("*.xpkg")) == []


def test_several_faults_are_told_one_a_line(crossdock, provider):
    (provider / "a.yaml").write_text("a: [")
    (provider / "b.yaml").write_text("kind: Thing")
    answer = crossdock("build", "-f", "provider")
    assert answer.code == 1
    lines = answer.err.splitlines()
    assert lines[0] == "crossdock: error: 2 faults:"
    assert [line.partition(":")[0] for line in lines[1:]] == ["  a.yaml", "  b.yaml"]


def test_a_folder_that_is_missing_is_named(crossdock, tmp_path):
    answer = crossdock("build", "-f", "nowhere")
    assert answer.code == 1
    assert f"{tmp_path}/nowhere" in answer.err


def test_a_terminal_sees_progress_and_is_left_clean(crossdock, provider):
    answer = crossdock("build", "-f", "provider", terminal=True)
    assert answer.err == "\r\x1b[Kbuilding from provider\r\x1b[K"


class TestRuntimeImage:
    @pytest.fixture
    def layout(self, tmp_path):
        """An OCI layout with images for two platforms, below the session's folder."""
        layout = Layout()
        images = [layout.image(EMPTY, architecture=name) for name in ("amd64", "arm64")]
        layout.top(*images).folder(tmp_path / "runtime")
        return layout

    @pytest.mark.usefixtures("layout")
    @pytest.mark.parametrize("architecture", ["amd64", "arm64"])
    def test_of_a_platform_is_embedded(self, crossdock, provider, tmp_path, architecture):
        words = ["-f", "provider", "--embed-runtime-image-tarball", "runtime"]
        answer = crossdock("build", *words, "--platform", f"linux/{architecture}")
        assert (answer.code, answer.err) == (0, "")
        with Archive(tmp_path / answer.out.splitlines()[0]) as archive:
            assert archive.platform == {"os": "linux", "architecture": architecture}
            assert archive.meta()["kind"] == "Provider"

    @pytest.mark.usefixtures("layout")
    @pytest.mark.parametrize(
        ("words", "code", "text"),
        [
            (
                ["--embed-runtime-image-tarball", "gone.tar"],
                1,
                "failed to load runtime tarball: gone.tar: no such file or directory",
            ),
            (
                ["--embed-runtime-image-tarball", "provider"],
                1,
                "failed to load runtime tarball: provider: ",
            ),
            (
                ["--embed-runtime-image-tarball", "runtime", "--platform", "linux/s390x"],
                1,
                "it holds no image for linux/s390x, of these: linux/amd64, linux/arm64",
            ),
            (
                ["--embed-runtime-image-tarball", "runtime", "--embed-runtime-image", "r.io/a:v1"],
                2,
                "--embed-runtime-image and --embed-runtime-image-tarball: give only one of them",
            ),
            (["--platform", "linux/amd64"], 2, "it chooses a runtime image, and none is given"),
            (["--embed-runtime-image", "a"], 2, "it names no registry"),
            (["--embed-runtime-image", "r.io/a"], 2, "it names no tag or digest"),
            (["--compression", "xz"], 2, '--compression: expected one of "gzip", "none"'),
        ],
    )
    def test_what_cannot_be_embedded(self, crossdock, provider, words, code, text):
        answer = crossdock("build", "-f", "provider", *words)
        assert answer.code == code
        assert text in answer.err
        assert list(provider.glob("*.xpkg")) == []


def test_a_runtime_image_of_another_platform_is_refused(crossdock, provider, tmp_path):
    layout = Layout()
    layout.top(layout.image(EMPTY, architecture="amd64")).folder(tmp_path / "runtime")
    words = ["--embed-runtime-image-tarball", "runtime", "--platform", "linux/arm64"]
    answer = crossdock("build", "-f", "provider", *words)
    assert answer.code == 1
    assert "runtime is for linux/amd64, not for linux/arm64: name the image for" in answer.err
    assert list(provider.glob("*.xpkg")) == []


def test_without_compression_the_layers_are_plain(crossdock, provider, tmp_path):
    answer = crossdock("build", "-f", "provider", "--compression", "none")
    with Archive(tmp_path / answer.out.splitlines()[0]) as archive:
        assert all(layer.media_type.endswith(".tar") for layer in archive.layers)


def test_examples_of_another_folder(crossdock, provider, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.yaml").write_text("kind: Other\n")
    answer = crossdock("build", "-f", "provider", "-e", "more")
    with Archive(tmp_path / answer.out.splitlines()[0]) as archive:
        archive.examples(tmp_path / "examples.yaml")
    assert (tmp_path / "examples.yaml").read_text() == "---\nkind: Other\n"
