"""``push``: where a package goes, which file it is, and what is refused before anything is sent."""

from __future__ import annotations

import pytest

from controller.cli.push import find_package, push_target
from controller.cli.session import CommandError, UsageError


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
