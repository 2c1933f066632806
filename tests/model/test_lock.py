from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.model.lock import (
    INVALID_DEPENDENCY,
    Dependency,
    DependencyError,
    LockEntry,
    canonical_source,
    dependencies_of,
    n_and_some_more,
    without_identifier,
)

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("xpkg.io/a/b", "xpkg.io/a/b"),
        ("xpkg.io/a/b:v1", "xpkg.io/a/b"),
        (f"xpkg.io/a/b@{DIGEST}", "xpkg.io/a/b"),
        (f"xpkg.io/a/b:v1@{DIGEST}", "xpkg.io/a/b"),
        ("XPKG.io/a/b", "xpkg.io/a/b"),
        ("reg:5000/a", "reg:5000/a"),
        ("reg:5000/a:v1", "reg:5000/a"),
        ("[::1]:5000/a:v1", "[::1]:5000/a"),
        ("localhost/a", "localhost/a"),
        ("docker.io/a/b", "index.docker.io/a/b"),
        ("index.docker.io/a/b", "index.docker.io/a/b"),
        ("registry-1.docker.io/a/b", "index.docker.io/a/b"),
        ("a/b", "index.docker.io/a/b"),
        ("docker.io/ubuntu:22.04", "index.docker.io/library/ubuntu"),
        ("ubuntu", "index.docker.io/library/ubuntu"),
        ("a:5000", "index.docker.io/library/a"),
        ("Foo/bar", "Foo/bar"),
    ],
)
def test_sources_are_compared_on_their_canonical_form(text, expected):
    assert canonical_source(text) == expected


@given(st.one_of(st.text(max_size=30), st.text("aA.:/@-0", max_size=20)))
def test_canonical_form_is_stable_for_any_text(text):
    once = canonical_source(text)
    assert canonical_source(once) == once


def test_identifier_goes_and_spelling_stays():
    assert without_identifier(f"docker.io/a/b:v1@{DIGEST}") == "docker.io/a/b"


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], ""),
        (["b"], "b"),
        (["b", "a"], "a, b"),
        (["c", "b", "a"], "a, b, and c"),
        (["d", "c", "b", "a"], "a, b, c, and 1 more"),
        (list("fedcba"), "a, b, c, and 3 more"),
    ],
)
def test_long_lists_are_cut_in_messages(items, text):
    assert n_and_some_more(items) == text


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            {
                "apiVersion": "pkg.crossplane.io/v1",
                "kind": "Provider",
                "package": "x.io/p",
                "version": ">=v1",
            },
            Dependency("x.io/p", ">=v1", "Provider", "pkg.crossplane.io/v1"),
        ),
        ({"provider": "x.io/p", "version": ">=v1"}, Dependency("x.io/p", ">=v1", "Provider")),
        ({"configuration": "x.io/c", "version": "*"}, Dependency("x.io/c", "*", "Configuration")),
        ({"function": "x.io/f", "version": DIGEST}, Dependency("x.io/f", DIGEST, "Function")),
        ({"function": "x.io/f"}, Dependency("x.io/f", "", "Function")),
        (
            {"function": "f", "provider": "p", "configuration": "c", "version": "1"},
            Dependency("c", "1", "Configuration"),
        ),
        (
            {"kind": "Provider", "package": "x.io/p", "provider": "x.io/q", "version": "1"},
            Dependency("x.io/q", "1", "Provider"),
        ),
    ],
)
def test_dependencies_are_read_in_all_their_forms(entry, expected):
    assert Dependency.from_metadata(entry) == expected
    assert dependencies_of({"spec": {"dependsOn": [entry]}}) == (expected,)


@pytest.mark.parametrize(
    "entry",
    [
        {}, {"version": "1"}, {"package": "x.io/p", "version": "1"}, None, "x.io/p", 7, [],
        {"apiVersion": "pkg.crossplane.io/v1", "kind": "Provider"}, {"provider": ""},
        {"provider": 7}, {"provider": None},
        {"apiVersion": "pkg.crossplane.io/v1", "kind": "", "package": "x.io/p"},
    ],
)  # fmt: skip
def test_an_invalid_dependency_is_refused_with_its_place(entry):
    good = {"provider": "x.io/p", "version": "1"}
    with pytest.raises(DependencyError) as caught:
        dependencies_of({"spec": {"dependsOn": [good, entry]}})
    assert str(caught.value) == f"{INVALID_DEPENDENCY} (spec.dependsOn[1])"


def test_a_dependency_list_that_is_none_is_refused():
    with pytest.raises(DependencyError, match=r"spec\.dependsOn is not a list"):
        dependencies_of({"spec": {"dependsOn": {"provider": "x"}}})


@pytest.mark.parametrize("meta", [{}, {"spec": None}, {"spec": {}}, {"spec": {"dependsOn": None}}])
def test_metadata_without_dependencies_has_none(meta):
    assert dependencies_of(meta) == ()


@pytest.mark.parametrize(
    "entry",
    [
        {
            "name": "p-1",
            "apiVersion": "pkg.crossplane.io/v1",
            "kind": "Provider",
            "source": "x.io/p",
            "version": "v1.0.0",
            "dependencies": [
                {
                    "package": "x.io/q",
                    "apiVersion": "pkg.crossplane.io/v1",
                    "kind": "Function",
                    "constraints": ">=1",
                }
            ],
        },
        {
            "name": "p-1",
            "type": "Provider",
            "source": "x.io/p",
            "version": DIGEST,
            "dependencies": [{"package": "x.io/q", "type": "Provider", "constraints": "*"}],
        },
        {"name": "p-1", "source": "x.io/p", "version": "", "dependencies": []},
    ],
)
def test_lock_entries_survive_reading_and_writing(entry):
    assert LockEntry.from_json(entry).to_json() == entry


def test_an_entry_with_missing_fields_is_read():
    assert LockEntry.from_json({}) == LockEntry("", "", "")
    entry = LockEntry.from_json({"name": "a", "dependencies": [{"constraints": "1"}]})
    assert entry.dependencies == (Dependency("", "1"),)
