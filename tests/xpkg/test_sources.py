"""Sources: which files are read, their order, and patterns that leave some out."""

from __future__ import annotations

import pytest

from controller.xpkg.errors import BuildError
from controller.xpkg.sources import Ignore, yaml_files
from tests.xpkg.tars import tree


def found(root, *patterns, below=""):
    return [file.relative for file in yaml_files(root, Ignore(patterns, root), below=below)]


def test_yaml_files_at_any_depth_sorted_by_the_bytes_of_their_paths(tmp_path):
    names = ["b.yaml", "a/z.yml", "a-b.yaml", "a/b/c.yaml", ".hidden/x.yaml", "Z.yaml", "é.yaml"]
    tree(tmp_path, dict.fromkeys([*names, "a/readme.md", "x.YAML", "yaml"], ""))
    assert found(tmp_path) == [
        ".hidden/x.yaml",
        "Z.yaml",
        "a-b.yaml",
        "a/b/c.yaml",
        "a/z.yml",
        "b.yaml",
        "é.yaml",
    ]
    assert found(tmp_path, below="a") == ["a/b/c.yaml", "a/z.yml"]


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["a"], ["b/c.yaml", "d.yaml"]),
        (["./a/"], ["b/c.yaml", "d.yaml"]),
        (["a", "d.yaml"], ["b/c.yaml"]),
        (["*.yaml"], ["a/b/c.yaml", "a/c.yaml", "b/c.yaml"]),
        (["*/c.yaml"], ["a/b/c.yaml", "d.yaml"]),
        (["a/*"], ["b/c.yaml", "d.yaml"]),
        (["?/b"], ["a/c.yaml", "b/c.yaml", "d.yaml"]),
        (["[ab]"], ["d.yaml"]),
        (["[^ab]*"], ["a/b/c.yaml", "a/c.yaml", "b/c.yaml"]),
        (["[a-c]/c.yaml"], ["a/b/c.yaml", "d.yaml"]),
        ([r"\d.yaml"], ["a/b/c.yaml", "a/c.yaml", "b/c.yaml"]),
        (["c.yaml"], ["a/b/c.yaml", "a/c.yaml", "b/c.yaml", "d.yaml"]),
        (["nothing"], ["a/b/c.yaml", "a/c.yaml", "b/c.yaml", "d.yaml"]),
    ],
)
def test_patterns_are_relative_to_the_root_and_take_whole_folders(tmp_path, patterns, left):
    tree(tmp_path, dict.fromkeys(["a/b/c.yaml", "a/c.yaml", "b/c.yaml", "d.yaml"], ""))
    assert found(tmp_path, *patterns) == left


def test_a_pattern_may_be_absolute_below_the_root(tmp_path):
    tree(tmp_path, dict.fromkeys(["a/c.yaml", "d.yaml"], ""))
    assert found(tmp_path, str(tmp_path / "a")) == ["d.yaml"]


@pytest.mark.parametrize(
    ("pattern", "cause"),
    [
        ("[", "syntax error in pattern"),
        ("a[", "syntax error in pattern"),
        ("a\\", "syntax error in pattern"),
        ("[z-a]", "syntax error in pattern"),
        ("../x", "names nothing inside the package root"),
        ("", "names nothing inside the package root"),
        (".", "names nothing inside the package root"),
        ("/etc", "lies outside the package root"),
    ],
)
def test_patterns_that_mean_nothing_are_refused(tmp_path, pattern, cause):
    with pytest.raises(BuildError, match=cause):
        Ignore([pattern], tmp_path)


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path):
    tree(tmp_path, {"root/a.yaml": "", "other/b.yaml": "", "file": ""})
    (tmp_path / "root/link.yaml").symlink_to(tmp_path / "file")
    (tmp_path / "root/folder").symlink_to(tmp_path / "other")
    (tmp_path / "root/folder.yaml").symlink_to(tmp_path / "other")
    assert found(tmp_path / "root") == ["a.yaml", "link.yaml"]


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nothing")
    with pytest.raises(BuildError, match=r"gone\.yaml: cannot read it: No such file"):
        found(tmp_path)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(BuildError, match=r"cannot read .*/nothing: No such file or directory"):
        found(tmp_path / "nothing")
