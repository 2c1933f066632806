from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.model.graph import (
    Graph,
    Missing,
    choose_version,
    cycle_message,
    find_package,
    needs_tags,
    package_name,
    package_object,
    satisfies,
)
from controller.model.lock import Dependency, DependencyError, LockEntry
from controller.model.semver import Constraint, ConstraintError, Version

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


def entry(name, *needs, version="v1.0.0", source=None):
    """An entry of source x.io/<name>; needs are ``"source constraint"``."""
    dependencies = tuple(
        Dependency(f"x.io/{package}", constraint, "Provider", "pkg.crossplane.io/v1")
        for package, _, constraint in (need.partition(" ") for need in needs)
    )
    return LockEntry(f"{name}-rev", source or f"x.io/{name}", version, dependencies)


@pytest.mark.parametrize(
    ("me", "others", "counters", "message"),
    [
        (entry("me"), [], (0, 0, 0), ""),
        (entry("me", "a >=1"), [entry("a")], (1, 1, 0), ""),
        (entry("me", "a >=1"), [], (1, 0, 0), 'missing dependencies: "x.io/a" (>=1)'),
        (entry("me", "a"), [], (1, 0, 0), 'missing dependencies: "x.io/a"'),
        (
            entry("me", "c 1", "a 1", "b 1"),
            [],
            (3, 0, 0),
            'missing dependencies: "x.io/a" (1), "x.io/b" (1), and "x.io/c" (1)',
        ),
        (
            entry("me", "e 1", "d 1", "c 1", "b 1", "a 1"),
            [],
            (5, 0, 0),
            'missing dependencies: "x.io/a" (1), "x.io/b" (1), "x.io/c" (1), and 2 more',
        ),
        (
            entry("me", "a >=1"),
            [entry("a", "b >=2")],
            (2, 1, 0),
            'missing dependencies: "x.io/b" (>=2)',
        ),
        (entry("me", "a *"), [entry("a", "b *"), entry("b", "c *"), entry("c")], (3, 3, 0), ""),
        (
            entry("me", "a >=2"),
            [entry("a")],
            (1, 1, 1),
            (
                "incompatible dependencies: existing package x.io/a@v1.0.0 is incompatible with "
                "constraint >=2"
            ),
        ),
        (
            entry("me", "a >=2", "b <1"),
            [entry("a"), entry("b")],
            (2, 2, 2),
            (
                "incompatible dependencies: existing package x.io/a@v1.0.0 is incompatible with "
                "constraint >=2; existing package x.io/b@v1.0.0 is incompatible with constraint <1"
            ),
        ),
        (entry("me", f"a {DIGEST}"), [entry("a", version=DIGEST)], (1, 1, 0), ""),
        (
            entry("me", f"a {DIGEST}"),
            [entry("a", version=OTHER)],
            (1, 1, 1),
            (
                f"incompatible dependencies: existing package x.io/a@{OTHER} is incompatible with "
                f"constraint {DIGEST}"
            ),
        ),
        (
            entry("me", "a >=1"),
            [entry("a", version="main")],
            (1, 1, 1),
            (
                "incompatible dependencies: existing package x.io/a@main is incompatible with "
                "constraint >=1 (main is no semantic version)"
            ),
        ),
        (
            entry("me", "a bad range"),
            [entry("a")],
            (1, 1, 1),
            'incompatible dependencies: dependency x.io/a: improper constraint: "bad range"',
        ),
        (
            entry("me", "a >=2", "b 1"),
            [entry("a")],
            (2, 1, 1),
            (
                'missing dependencies: "x.io/b" (1); incompatible dependencies: existing package '
                "x.io/a@v1.0.0 is incompatible with constraint >=2"
            ),
        ),
    ],
)
def test_one_revision_is_evaluated(me, others, counters, message):
    result = Graph.of([*others, me]).evaluate(me)
    assert (result.found, result.installed, result.invalid) == counters
    assert result.message == message
    assert result.satisfied == (message == "")


def test_a_revision_is_evaluated_before_it_is_in_the_lock():
    graph = Graph.of([entry("me"), entry("a")])
    candidate = entry("me", "a >=1", "b >=1", version="v2.0.0")
    assert [d.package for d in graph.evaluate(candidate).missing] == ["x.io/b"]


@pytest.mark.parametrize("spelling", ["docker.io/o/a", "o/a", "registry-1.docker.io/o/a"])
def test_spellings_of_one_source_are_one_node(spelling):
    me = LockEntry("me", "x.io/me", "v1.0.0", (Dependency(spelling, ">=1", "Provider"),))
    graph = Graph.of([entry("a", source="index.docker.io/o/a"), me])
    assert graph.evaluate(me).satisfied
    assert graph.missing() == ()


def test_all_missing_packages_are_named_with_all_that_want_them():
    graph = Graph.of([entry("p", "a >=1", "b 2"), entry("q", "a <3", "p *"), entry("r", "a >=1")])
    first, second = graph.missing()
    assert (first.package, first.kind) == ("x.io/a", "Provider")
    assert first.parents == (("p-rev", ">=1"), ("q-rev", "<3"), ("r-rev", ">=1"))
    assert first.constraints == (">=1", "<3")
    assert first.wanted_by == "p-rev wants >=1, q-rev wants <3, r-rev wants >=1"
    assert (second.key, second.constraints) == ("x.io/b", ("2",))


def test_an_explicit_type_is_preferred_to_a_legacy_one():
    explicit = Dependency("x.io/a", "1", "Function", "pkg.crossplane.io/v1beta1")
    entries = [
        LockEntry("p", "x.io/p", "v1.0.0", (Dependency("x.io/a", "1", "Function"),)),
        LockEntry("q", "x.io/q", "v1.0.0", (explicit,)),
    ]
    (missing,) = Graph.of(entries).missing()
    assert missing.api_version == "pkg.crossplane.io/v1beta1"


def test_a_duplicate_harms_only_itself():
    """Of 30 packages, one that repeats another's source is named and nobody else is affected."""
    packages = [entry(f"p{i}", *([f"p{i - 1} *"] if i else [])) for i in range(29)]
    intruder = entry("intruder", "absent *", source="x.io/p3:v9")
    graph = Graph.of([*packages, intruder])
    assert graph.duplicates == {"intruder-rev": "p3-rev"}
    assert all(graph.evaluate(package).satisfied for package in packages)
    assert graph.missing() == ()
    assert graph.cycles() == ()


def test_two_revisions_of_one_package_are_no_duplicates():
    old, new = entry("p-1", source="x.io/p"), entry("p-2", source="x.io/p", version="v2.0.0")
    owners = {"p-1-rev": "Provider/p", "p-2-rev": "Provider/p"}
    graph = Graph.of([old, new], owners=owners)
    assert graph.duplicates == {}
    assert graph.entries["x.io/p"].version == "v2.0.0"
    assert Graph.of([old, new]).duplicates == {"p-2-rev": "p-1-rev"}


def test_a_broken_entry_harms_only_itself():
    broken = LockEntry("", "", "", (Dependency("", ""),))
    good = entry("p", "q *")
    graph = Graph.of([broken, good, entry("q")])
    assert graph.evaluate(good).satisfied
    assert graph.missing() == ()
    assert not graph.evaluate(broken).satisfied


@pytest.mark.parametrize(
    ("entries", "cycles"),
    [
        ([entry("a", "b *"), entry("b")], ()),
        ([entry("a", "a *")], (("x.io/a",),)),
        ([entry("a", "b *"), entry("b", "c *"), entry("c", "a *")], ("abc",)),
        ([entry("a", "b *"), entry("b", "a *"), entry("c", "d *"), entry("d", "c *")],
         ("ab", "cd")),
        ([entry("a", "absent *")], ()),
    ],
)  # fmt: skip
def test_cycles_are_found(entries, cycles):
    found = {frozenset(cycle) for cycle in Graph.of(entries).cycles()}
    expected = {frozenset(f"x.io/{n}" for n in c) if isinstance(c, str) else frozenset(c)
                for c in cycles}  # fmt: skip
    assert found == expected


def test_a_cycle_is_told_in_the_order_of_dependence():
    entries = [entry("a", "b *"), entry("b", "c *"), entry("c", "a *")]
    cycles = Graph.of(entries).cycles()
    message = cycle_message(cycles)
    start = cycles[0][0]
    assert message.startswith(f"cannot sort DAG: detected cycle on: {start} (")
    forward = "x.io/a → x.io/b → x.io/c → x.io/a → x.io/b → x.io/c"
    assert message.partition("(")[2].rstrip(")") in forward
    assert cycle_message(()) == ""


def test_of_many_cycles_three_are_told():
    graph = Graph.of([entry(f"p{i}", f"p{i} *") for i in range(100)])
    assert len(graph.cycles()) == 3


def test_a_member_of_a_cycle_is_still_evaluated():
    me = entry("a", "b *")
    assert Graph.of([me, entry("b", "a *")]).evaluate(me).satisfied


def test_a_lock_of_a_thousand_in_a_chain_is_walked():
    entries = [entry(f"p{i}", f"p{i + 1} *") for i in range(1000)]
    graph = Graph.of(entries)
    result = graph.evaluate(entries[0])
    assert (result.found, result.installed) == (1000, 999)
    assert [m.package for m in graph.missing()] == ["x.io/p1000"]
    assert graph.cycles() == ()


TAGS = ["v0.9.0", "v1.0.0", "v1.2.0", "v2.0.0", "v2.1.0-rc.1", "v3", "latest"]


@pytest.mark.parametrize(
    ("constraints", "chosen"),
    [
        (["*"], "v2.0.0"),
        ([">=1", "<2"], "v1.2.0"),
        ([">=1.0.0", ">=1.0.0"], "v2.0.0"),
        ([">=2.1.0-0"], "v2.1.0-rc.1"),
        ([DIGEST], DIGEST),
        ([DIGEST, DIGEST], DIGEST),
    ],
)
def test_the_highest_version_for_all_parents_is_chosen(constraints, chosen):
    assert choose_version(TAGS, constraints, source="x.io/a") == chosen


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (
            [">=5"],
            ("dependency (x.io/a) does not have a valid version to upgrade that satisfies all "
            "constraints. If there is a valid version that requires downgrade, manual intervention "
            "is required. Constraints: >=5 (7 tags, the highest release is v2.0.0)"),
        ),
        (
            [">=2", "<1"],
            ("dependency (x.io/a) does not have a valid version to upgrade that satisfies all "
            "constraints. If there is a valid version that requires downgrade, manual intervention "
            "is required. Constraints: [>=2 <1] (7 tags, the highest release is v2.0.0)"),
        ),
        ([""], 'version constraint on dependency is invalid: improper constraint: ""'),
        (["bad"], 'version constraint on dependency is invalid: improper constraint: "bad"'),
        (
            [DIGEST, OTHER],
            ("a dependency package has different digests in parent constraints "
            f"([{DIGEST} {OTHER}])"),
        ),
        (
            [DIGEST, ">=1"],
            ("a dependency package has different types of parent constraints "
            f"([{DIGEST} >=1])"),
        ),
    ],
)  # fmt: skip
def test_a_choice_that_is_impossible_is_explained(constraints, message):
    with pytest.raises(DependencyError) as caught:
        choose_version(TAGS, constraints, source="x.io/a")
    assert str(caught.value) == message


def test_an_empty_repository_is_told():
    with pytest.raises(DependencyError, match=r"\(0 tags, the highest release is none\)"):
        choose_version([], ["*"], source="x.io/a")


def test_only_digests_need_no_tags():
    assert not needs_tags([DIGEST, DIGEST])
    assert needs_tags([DIGEST, ">=1"])


def missing(package, kind="Provider", api_version="pkg.crossplane.io/v1"):
    return Missing(package, kind, api_version, (("p-rev", "*"),))


@pytest.mark.parametrize(
    ("wanted", "version", "kind", "name", "source"),
    [
        (missing("x.io/a/p"), "v1.0.0", "Provider", "a-p", "x.io/a/p:v1.0.0"),
        (missing("x.io/a/p"), DIGEST, "Provider", "a-p", f"x.io/a/p@{DIGEST}"),
        (missing("x.io/a/p", "Function", None), "v1", "Function", "a-p", "x.io/a/p:v1"),
        (missing("docker.io/a/p"), "v1", "Provider", "a-p", "docker.io/a/p:v1"),
        (missing("a/p"), "v1", "Provider", "a-p", "index.docker.io/a/p:v1"),
        (missing("x.io/a/p:v3"), "v1", "Provider", "a-p", "x.io/a/p:v1"),
        (missing("r:5000/a.b/c_d"), "v1", "Provider", "a-b-cd", "r:5000/a.b/c_d:v1"),
    ],
)
def test_the_package_for_a_missing_dependency(wanted, version, kind, name, source):
    assert package_object(wanted, version) == {
        "apiVersion": "pkg.crossplane.io/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"package": source},
    }


@pytest.mark.parametrize(
    "wanted",
    [
        missing("x.io/a", "Widget"),
        missing("x.io/a", None, None),
        missing("x.io/a", "Provider", "other.io/v1"),
        missing("x.io/___"),
    ],
)
def test_what_is_no_package_is_not_constructed(wanted):
    with pytest.raises(DependencyError, match=r"cannot construct|is not valid"):
        package_object(wanted, "v1")


def test_package_names_are_repository_paths():
    assert package_name("xpkg.io/crossplane-contrib/provider-nop") == (
        "crossplane-contrib-provider-nop"
    )


def test_a_package_is_found_by_source_before_by_where_it_is_fetched_from():
    def package(name, source, resolved=None):
        return {
            "metadata": {"name": name},
            "spec": {"package": source},
            "status": {"resolvedPackage": resolved},
        }

    mirrored = package("a", "mirror.io/o/p:v1", "x.io/o/p:v1")
    plain = package("b", "x.io/o/p:v1")
    fresh = {"metadata": {"name": "c"}, "spec": {"package": "x.io/o/q:v1"}}
    assert find_package([mirrored, plain, fresh], "x.io/o/p") is plain
    assert find_package([fresh, mirrored], "x.io/o/p") is mirrored
    assert find_package([fresh], "x.io/o/p") is None


def test_an_installed_version_is_compared_by_precedence_or_digest():
    assert satisfies("v1.2", ">=1.2.0")
    assert satisfies(DIGEST, DIGEST)
    assert not satisfies(DIGEST, ">=1.2.0")
    assert not satisfies("v1.0.0", DIGEST)
    with pytest.raises(ConstraintError):
        satisfies("v1.0.0", "")


NAMES = st.sampled_from("abcde")
NEEDS = st.lists(
    st.tuples(NAMES, st.sampled_from(["*", ">=1", "<1", "", "bad", DIGEST])), max_size=4
)
LOCKS = st.dictionaries(
    NAMES, st.tuples(NEEDS, st.sampled_from(["v1.0.0", "v0.1.0", "main", "", DIGEST])), max_size=5
).map(
    lambda lock: [
        entry(name, *(f"{n} {c}" for n, c in needs), version=version)
        for name, (needs, version) in lock.items()
    ]
)


@given(LOCKS)
def test_evaluations_agree_with_the_lock_as_a_whole(entries):
    graph = Graph.of(entries)
    absent = {m.key for m in graph.missing()}
    assert absent == {d.key for e in entries for d in e.dependencies} - set(graph.entries)
    for one in entries:
        result = graph.evaluate(one)
        assert {d.key for d in result.missing} <= absent
        assert result.found - result.installed == len(result.missing)
        assert 0 <= result.invalid <= len(one.dependencies)
    for cycle in graph.cycles():
        for source, target in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            assert target in {d.key for d in graph.entries[source].dependencies}


@given(st.lists(st.text(max_size=12), max_size=6), st.lists(st.text(max_size=12), min_size=1))
def test_no_text_does_more_than_raise_the_documented_error(tags, constraints):
    try:
        chosen = choose_version(tags, constraints, source="x.io/a")
    except DependencyError:
        return
    assert all(Constraint.parse(c).matches(Version.parse(chosen)) for c in constraints)
