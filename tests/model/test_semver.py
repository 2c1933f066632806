"""Versions and constraints: tables whose answers Masterminds/semver v3 gives, and laws."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.model.semver import (
    Constraint,
    ConstraintError,
    Version,
    VersionError,
    highest,
    is_digest_constraint,
)


@pytest.mark.parametrize(
    ("text", "canonical", "complete"),
    [
        ("1.2.3", "1.2.3", True),
        ("v1.2.3", "1.2.3", True),
        ("1.2.3-alpha.1+build.5", "1.2.3-alpha.1+build.5", True),
        ("v1.2.3-0", "1.2.3-0", True),
        ("v1", "1.0.0", False),
        ("1.2", "1.2.0", False),
        ("1.2-beta", "1.2.0-beta", False),
        ("01.2.3", "1.2.3", False),
        ("0.0.0", "0.0.0", True),
        ("18446744073709551615.0.0", "18446744073709551615.0.0", True),
    ],
)
def test_version_is_read_loosely(text, canonical, complete):
    version = Version.parse(text)
    assert (str(version), version.is_complete, version.original) == (canonical, complete, text)


@pytest.mark.parametrize(
    "text",
    [
        "", "v", "main", "latest", "V1.2.3", "vv1.2.3", " 1.2.3", "1.2.3 ", "1.2.3\n", "1.2.3.4",
        "1..2", "1.2.3-", "1.2.3-01", "1.2.3-a..b", "1.2.3+", "1.2.3-a_b", "-1.2.3", "x.1.2",
        "18446744073709551616.0.0", "\u0661.2.3", "1" * 257, "sha256:" + "a" * 64,
    ],
)  # fmt: skip
def test_text_that_is_no_version_is_refused_with_a_message(text):
    with pytest.raises(VersionError, match="invalid semantic version"):
        Version.parse(text)


def test_versions_are_ordered_by_precedence():
    ascending = [
        "0.0.1", "0.9.0", "1.0.0-1", "1.0.0-2", "1.0.0-11", "1.0.0-alpha", "1.0.0-alpha.1",
        "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0",
        "1.0.1", "1.2.0", "1.10.0", "2.0.0-0", "2.0.0",
    ]  # fmt: skip
    versions = [Version.parse(text) for text in ascending]
    backwards = versions[::-1]
    assert sorted(backwards) == versions
    assert all(a < b for a, b in pairwise(versions))


def test_spelling_and_build_metadata_do_not_count():
    same = {Version.parse(text) for text in ("v1.2.0", "1.2", "1.2.0+a", "1.02.0+b")}
    assert len(same) == 1
    assert Version.parse("1.2.0") != Version.parse("1.2.0-rc.1")
    assert Version.parse("1.2.0") != "1.2.0"


# constraint | versions that match | versions that do not
MATCHES = [
    ("1.2.3", "1.2.3 v1.2.3 1.2.3+x", "1.2.4 1.2.2 1.2.3-rc.1"),
    ("=1.2.3", "1.2.3", "1.2.4"),
    ("= v1.2.3", "1.2.3", "1.2.4"),
    ("1.2", "1.2.0 1.2.9", "1.3.0 1.1.9 1.2.1-rc.1"),
    ("1", "1.0.0 1.9.9", "2.0.0 0.9.9"),
    ("1.x", "1.0.0 1.9.9", "2.0.0"),
    ("1.2.X", "1.2.0 1.2.7", "1.3.0"),
    ("1.*.3", "1.0.0 1.9.3", "2.0.0"),
    ("*", "0.0.0 1.2.3", "1.0.0-rc.1"),
    ("x", "0.0.0 9.9.9", "0.0.0-0"),
    ("*-0", "1.0.0-rc.1 0.1.0", ""),
    ("!=1.2.3", "1.2.4 1.2.2", "1.2.3 1.2.3+x 1.2.4-rc.1"),
    ("!=1.2.x", "1.3.0 2.2.0", "1.2.0 1.2.5"),
    ("!=1", "2.0.0 0.1.0", "1.0.0 1.5.2"),
    ("!=1.x", "2.0.0", "1.0.0 1.9.0"),
    (">11", "12.0.0", "11.0.0 11.1.0 11.1.1"),
    (">11.1", "11.2.0 12.0.0 11.2.1", "11.1.0 11.1.1"),
    (">1.2.3", "1.2.4 1.3.0 2.0.0", "1.2.3 1.2.2 2.0.0-rc.1"),
    (">=11", "11.0.0 11.1.0 12.0.0", "10.9.9"),
    (">=11.1.3", "11.1.4 11.1.3", "11.1.2"),
    ("=>1.0", "1.0.0 1.1.0", "0.9.0"),
    ("<0", "", "0.0.0 1.0.0"),
    ("<11", "0.1.0 10.9.9", "11.0.0 11.1.0"),
    ("<1.1", "1.0.9", "1.1.0 1.1.1"),
    ("<=2", "2.0.0 2.9.9 1.0.0", "3.0.0"),
    ("<=1.2", "1.2.0 1.2.9 0.5.0", "1.3.0 2.0.0"),
    ("=<1.2.3", "1.2.3 1.0.0", "1.2.4"),
    ("~1.2.3", "1.2.3 1.2.9", "1.2.2 1.3.0"),
    ("~>1.2.3", "1.2.3 1.2.9", "1.3.0"),
    ("~1.2", "1.2.0 1.2.9", "1.3.0 1.1.0"),
    ("~1", "1.0.0 1.9.9", "2.0.0"),
    ("~1.x", "1.0.0 1.9.9", "2.0.0"),
    ("~0.0.0", "0.0.0 0.0.1 1.2.3", "0.0.1-rc.1"),
    ("^1.2.3", "1.2.3 1.9.0", "1.2.2 2.0.0 0.9.0"),
    ("^1.2", "1.2.0 1.9.0", "1.1.0 2.0.0"),
    ("^1", "1.0.0 1.9.0", "2.0.0"),
    ("^0.2.3", "0.2.3 0.2.9", "0.3.0 0.2.2 1.0.0"),
    ("^0.2", "0.2.0 0.2.9", "0.3.0 0.1.0"),
    ("^0.0.3", "0.0.3", "0.0.4 0.0.2 0.1.0"),
    ("^0.0", "0.0.0 0.0.9", "0.1.0"),
    ("^0", "0.0.0 0.9.9", "1.0.0"),
    ("1.2 - 1.4.5", "1.2.0 1.4.5 1.3.9", "1.4.6 1.1.0"),
    ("1.2 - 1.4", "1.4.9", "1.5.0"),
    ("v1.2.3 - v2.0.0", "1.2.3 2.0.0", "2.0.1"),
    (">=1.0, <2.0", "1.0.0 1.9.9", "2.0.0 0.9.9"),
    (">=1.0 <2.0", "1.0.0 1.9.9", "2.0.0"),
    (" >= 1.0 , < 2.0 ", "1.0.0 1.9.9", "2.0.0"),
    ("<1.0 || >=2.0", "0.9.0 2.0.0", "1.0.0 1.9.9"),
    ("1.2 - 1.3||3.x", "1.2.5 3.9.9", "2.0.0 1.4.0"),
    (">=1.0.0-0", "1.0.0-rc.1 1.0.0 2.0.0-alpha", "0.9.0"),
    (">=1.0.0-0, <2", "1.5.0-rc.1 1.0.0-0 2.0.0-rc.1", "2.0.0"),
    (">=1.1, <2, !=1.2.3 || > 3", "4.1.2", "3.1.2 1.2.3 1.3.0-a"),
    (">=1.0.0 || >=0.9.0-0", "0.9.0-rc.1 2.0.0-rc.1", "0.8.0"),
    (">=1.0.0 || <0.5.0-0", "0.4.0-rc.1 1.0.0", "2.0.0-rc.1"),
    ("^1.2.0-alpha", "1.2.0-beta 1.2.0 1.9.0 1.3.0-rc.1", "2.0.0-rc.1 1.1.0"),
    ("~1.2.3-beta.2", "1.2.3-beta.4 1.2.4-beta.2 1.2.3", "1.2.3-beta.1 1.3.0-beta.2"),
    ("=1.2.3+other", "1.2.3 1.2.3+x", "1.2.4"),
]


@pytest.mark.parametrize(("text", "inside", "outside"), MATCHES, ids=[row[0] for row in MATCHES])
def test_constraint_matches(text, inside, outside):
    constraint = Constraint.parse(text)
    assert {v: constraint.matches(Version.parse(v)) for v in inside.split()} == dict.fromkeys(
        inside.split(), True
    )
    assert {v: constraint.matches(Version.parse(v)) for v in outside.split()} == dict.fromkeys(
        outside.split(), False
    )
    assert str(constraint) == text


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "||", "1.0 ||", "|| 1.0", "foo", "> ", "==1.0", ">>1.0", "1.0,", ",1.0",
        "1.0,,2.0",
        ">=1.0<2.0", "1.2.3.4", "1.2 -1.4", "1.0 - ", "^1.0 and ^2.0", "1.0 || foo", "!1.0",
        "V1.0", "xx", "1.2.3-01", "18446744073709551616", "sha256:" + "a" * 64, "1.0\v", "\u0661",
        "1" * 513, " || ".join(["1"] * 33),
    ],
)  # fmt: skip
def test_text_that_is_no_constraint_is_refused_with_a_message(text):
    with pytest.raises(ConstraintError, match="improper constraint"):
        Constraint.parse(text)


def test_the_error_quotes_the_constraint():
    with pytest.raises(ConstraintError, match='improper constraint: "not-a-range"'):
        Constraint.parse("not-a-range")


@pytest.mark.parametrize(
    ("tags", "constraints", "chosen"),
    [
        (["v1.0.0", "v1.10.0", "v1.9.0"], [">=1.0.0"], "v1.10.0"),
        (["v1.0.0", "v2.0.0", "v1.5.0"], [">=1.0.0", "<2"], "v1.5.0"),
        (["v1", "v1.2", "latest", "v1.1.9", "sha256-abc.sig"], ["*"], "v1.1.9"),
        (["v1.0.0", "v2.0.0-rc.1"], [">=1.0.0"], "v1.0.0"),
        (["v1.0.0", "v2.0.0-rc.1"], [">=1.0.0-0"], "v2.0.0-rc.1"),
        (["1.0.0", "v1.0.0"], ["*"], "v1.0.0"),
        (["v1.0.0", "1.0.0"], ["*"], "v1.0.0"),
        (["v1.0.0"], [], "v1.0.0"),
        (["v1.0.0"], [">=2"], None),
        ([], ["*"], None),
    ],
)
def test_highest_tag_that_satisfies_all_is_chosen(tags, constraints, chosen):
    assert highest(tags, [Constraint.parse(text) for text in constraints]) == chosen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sha256:" + "0a" * 32, True),
        ("sha256:" + "0A" * 32, False),
        ("sha256:" + "0a" * 31, False),
        ("sha256:" + "0a" * 32 + "\n", False),
        ("sha512:" + "0a" * 64, False),
        (">=1.0.0", False),
        ("", False),
    ],
)
def test_digest_constraints_are_told_apart(text, expected):
    assert is_digest_constraint(text) is expected


NUMBERS = st.integers(0, 3)
IDENTIFIERS = st.sampled_from(["0", "1", "2", "10", "a", "b", "rc", "-", "a1"])
PRERELEASES = st.lists(IDENTIFIERS, max_size=3).map(".".join)
VERSIONS = st.builds(
    lambda a, b, c, pre, v: f"{v}{a}.{b}.{c}" + (f"-{pre}" if pre else ""),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    PRERELEASES,
    st.sampled_from(["", "v"]),
)
OPERATORS = st.sampled_from(["", "=", "!=", ">", "<", ">=", "<=", "~", "^"])
COMPARATORS = st.builds("{}{}".format, OPERATORS, VERSIONS)
GRAMMAR = st.text("0123.vxX*|-<>=!~^, ab+", max_size=24)


@given(VERSIONS.map(Version.parse), VERSIONS.map(Version.parse), VERSIONS.map(Version.parse))
def test_order_is_total_and_consistent_with_equality(a, b, c):
    assert sum((a < b, a == b, b < a)) == 1
    if a == b:
        assert hash(a) == hash(b)
    if a <= b and b <= c:
        assert a <= c


@given(VERSIONS)
def test_canonical_text_reads_back_as_the_same_version(text):
    version = Version.parse(text)
    assert Version.parse(str(version)) == version
    assert version.is_complete


@given(VERSIONS, VERSIONS)
def test_a_prerelease_only_matches_groups_that_name_one(text, other):
    version = Version.parse(text)
    for operator in (">=", "<=", "=", "~", "^", "!="):
        constraint = Constraint.parse(f"{operator}{other}")
        if version.prerelease and not Version.parse(other).prerelease:
            assert not constraint.matches(version)


@given(COMPARATORS, COMPARATORS, VERSIONS.map(Version.parse))
def test_alternatives_are_a_union_and_groups_an_intersection(a, b, version):
    first, second = (Constraint.parse(text).matches(version) for text in (a, b))
    assert Constraint.parse(f"{a} || {b}").matches(version) == (first or second)
    if not version.prerelease:
        assert Constraint.parse(f"{a}, {b}").matches(version) == (first and second)
        assert Constraint.parse(f"{a} {b}").matches(version) == (first and second)


@given(VERSIONS, VERSIONS.map(Version.parse))
def test_comparisons_partition_releases(text, version):
    operand = Version.parse(text)
    matches = {op: Constraint.parse(f"{op}{text}").matches(version) for op in ("<", "=", ">")}
    seen = not version.prerelease or operand.prerelease
    assert sum(matches.values()) == (1 if seen else 0)
    assert Constraint.parse(f"!={text}").matches(version) == bool(seen and not matches["="])


@given(st.one_of(st.text(max_size=40), GRAMMAR), VERSIONS.map(Version.parse))
def test_no_text_does_more_than_raise_the_documented_error(text, version):
    try:
        constraint = Constraint.parse(text)
    except ConstraintError:
        pass
    else:
        assert constraint.matches(version) in (True, False)
    try:
        parsed = Version.parse(text)
    except VersionError:
        return
    assert parsed == Version.parse(str(parsed))


@given(st.lists(st.one_of(VERSIONS, st.text(max_size=8)), max_size=12), COMPARATORS)
def test_highest_is_in_the_tags_satisfies_and_is_beaten_by_none(tags, text):
    constraint = Constraint.parse(text)
    chosen = highest(tags, [constraint])
    fitting = []
    for tag in tags:
        try:
            version = Version.parse(tag)
        except VersionError:
            continue
        if version.is_complete and constraint.matches(version):
            fitting.append(version)
    if chosen is None:
        assert not fitting
    else:
        assert chosen in tags
        assert Version.parse(chosen) == max(fitting)
