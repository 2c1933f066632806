"""``push``: where a package goes, which file it is, and what is refused before anything is sent."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from controller.cli.push import (
    annotations_of,
    find_package,
    manifests_of,
    open_packages,
    push_target,
)
from controller.cli.session import CommandError, UsageError
from tests.xpkg.layouts import META, PLAIN, Layout
from tests.xpkg.tars import make_tar, member


@pytest.mark.parametrize(
    ("text", "source", "tag"),
    [
        ("registry.example.com/acme/nop:v1", "registry.example.com/acme/nop", "v1"),
        ("127.0.0.1:5000/nop:v1", "127.0.0.1:5000/nop", "v1"),
        ("localhost:5000/nop:v1", "localhost:5000/nop", "v1"),
        ("docker.io/acme/nop:v1", "index.docker.io/acme/nop", "v1"),
    ],
)
def test_a_package_goes_to_a_tag(text, source, tag):
    reference = push_target(text)
    assert (reference.source, reference.tag) == (source, tag)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("nop", "it names no registry"),
        ("acme/nop:v1", "it names no registry"),
        ("provider", "it names no registry"),
        ("registry.example.com/acme/nop", "it names no tag"),
        ("127.0.0.1:5000/nop", "it names no tag"),
        ("registry.example.com/acme/nop:", '"" is no tag'),
        ("registry.example.com/Acme/nop:v1", '"Acme/nop" is no repository path'),
        (f"registry.example.com/nop@sha256:{'a' * 64}", "leave out the digest"),
        (f"registry.example.com/nop:v1@sha256:{'a' * 64}", "leave out the digest"),
    ],
)
def test_another_target_is_refused_with_what_is_missing(text, part):
    with pytest.raises(UsageError) as caught:
        push_target(text)
    assert str(caught.value).startswith(f'failed to parse package tag "{text}": ')
    assert part in str(caught.value)


def test_the_only_package_file_of_the_folder_is_found(tmp_path):
    (tmp_path / "nop.xpkg").touch()
    (tmp_path / "folder.xpkg").mkdir()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "other.xpkg").touch()
    assert find_package(tmp_path) == tmp_path / "nop.xpkg"


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        ([], "directory does not contain a compiled crossplane package"),
        (["a.xpkg", "b.xpkg"], "directory contains multiple compiled crossplane packages"),
    ],
)
def test_no_file_and_several_files_are_told_apart(crossdock, tmp_path, names, cause):
    for name in names:
        (tmp_path / name).touch()
    answer = crossdock("push", "registry.example.com/acme/nop:v1")
    assert answer.code == 1
    assert answer.err == (
        "crossdock: error: failed to find a package in current working directory: "
        f"{cause}; name the file with -f\n"
    )


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(CommandError, match="nowhere: no such file or directory"):
        find_package(tmp_path / "nowhere")


def test_a_file_that_is_missing_or_no_package_is_named(crossdock, tmp_path):
    words = ["push", "registry.example.com/acme/nop:v1", "-f"]
    assert crossdock(*words, "x.xpkg").err == (
        "crossdock: error: cannot read x.xpkg: no such file or directory\n"
    )
    (tmp_path / "x.xpkg").write_text("no archive")
    answer = crossdock(*words, "x.xpkg")
    assert answer.code == 1
    assert answer.err.startswith("crossdock: error: x.xpkg is no package: ")


class TestAnnotations:
    def test_are_given_by_name(self):
        texts = ["a=b", "c=d=e", "f=", "a=b"]
        assert annotations_of(texts) == {"a": "b", "c": "d=e", "f": ""}

    @pytest.mark.parametrize("texts", [["a"], ["=b"], ["a=b", "a=c"]])
    def test_that_are_none_are_refused(self, crossdock, texts):
        words = [word for text in texts for word in ("-a", text)]
        answer = crossdock("push", "registry.example.com/acme/nop:v1", *words)
        assert answer.code == 2
        assert "--oci-annotation: " in answer.err


class TestSeveralFiles:
    @pytest.fixture
    def files(self, tmp_path):
        """Package files for two platforms and for none, another package, and no package."""
        other = make_tar(member("package.yaml", META.replace(b"name: f", b"name: g")))
        for name, plain, architecture in [
            ("amd", PLAIN, "amd64"),
            ("again", PLAIN, "amd64"),
            ("arm", PLAIN, "arm64"),
            ("none", PLAIN, ""),
            ("nothing", PLAIN, ""),
            ("other", other, "arm"),
        ]:
            layout = Layout()
            layout.top(layout.image(plain, architecture=architecture)).archive(tmp_path / name)
        return tmp_path

    @pytest.mark.usefixtures("files")
    @pytest.mark.parametrize(
        ("names", "text"),
        [
            ("amd,again", "amd and again are both for linux/amd64: nobody could tell them apart"),
            ("none,nothing", "none and nothing both name no platform"),
            ("amd,other", "amd holds the Function f, other holds the Function g: push them to"),
            ("amd,gone", "cannot read gone: no such file or directory"),
        ],
    )
    def test_that_do_not_belong_together(self, crossdock, names, text):
        answer = crossdock("push", "registry.example.com/acme/nop:v1", "-f", names)
        assert answer.code == 1
        assert text in answer.err

    def test_become_an_index(self, files, make_session):
        paths = [files / "amd", files / "arm"]
        with ExitStack() as stack:
            archives = open_packages(paths, "Function", make_session())
            for archive in archives:
                stack.enter_context(archive)
            amd, arm, index = manifests_of(archives, {"a": "b"}, docker=False)
        document = json.loads(index.raw)
        assert [entry["digest"] for entry in document["manifests"]] == [amd.digest, arm.digest]
        assert [entry["platform"] for entry in document["manifests"]] == [
            {"architecture": "amd64", "os": "linux"},
            {"architecture": "arm64", "os": "linux"},
        ]
        assert document["annotations"] == {"a": "b"}
        assert json.loads(amd.raw)["annotations"] == {"a": "b", "org.example.kept": "yes"}

    def test_a_platform_that_is_not_known_is_left_out(self, files, make_session):
        with ExitStack() as stack:
            archives = open_packages([files / "amd", files / "none"], None, make_session())
            for archive in archives:
                stack.enter_context(archive)
            *_, index = manifests_of(archives, {}, docker=True)
        assert index.media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
        assert "platform" not in json.loads(index.raw)["manifests"][1]

    def test_one_file_with_several_images_is_the_same(self, tmp_path, make_session):
        layout = Layout()
        images = [layout.image(PLAIN, architecture=name) for name in ("amd64", "arm64")]
        path = layout.top(layout.index(*images)).folder(tmp_path / "layout")
        with ExitStack() as stack:
            archives = open_packages([path], None, make_session())
            for archive in archives:
                stack.enter_context(archive)
            *manifests, _ = manifests_of(archives, {}, docker=False)
        assert [each.digest for each in manifests] == [each["digest"] for each in images]
