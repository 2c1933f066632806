"""``build``: what a person sees; what is in the file is the business of ``tests/xpkg``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from controller.xpkg.archive import Archive

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
