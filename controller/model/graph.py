"""The dependency graph of a Lock: what is missing, what does not fit, which version to install.

Sources are compared by ``canonical_source``, so that spellings of one repository are one node. An
entry that is wrong harms the package it belongs to and no other.

Source: Crossplane's dependency resolver.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import TYPE_CHECKING, Final

from controller.model.lock import (
    Dependency,
    DependencyError,
    LockEntry,
    canonical_source,
    n_and_some_more,
    split_source,
    without_identifier,
)
from controller.model.objects import PACKAGES, PKG_GROUP, JsonObject, dns_label
from controller.model.semver import (
    Constraint,
    ConstraintError,
    Version,
    VersionError,
    highest,
    is_digest_constraint,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

_CYCLES_NAMED: Final = 3
_PARENTS_NAMED: Final = 10


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the Lock says about the dependencies of one revision.

    The counters are those of a revision's status: ``found`` dependencies, direct and indirect;
    how many of them are ``installed``; how many direct ones do not fit (``invalid``).
    """

    found: int
    installed: int
    invalid: int
    missing: tuple[Dependency, ...]
    message: str  # empty when everything is there and fits

    @property
    def satisfied(self) -> bool:
        """Whether everything that the revision needs is installed in a version that fits."""
        return not self.message


@dataclass(frozen=True, slots=True)
class Missing:
    """A package that others need and nobody installed; ``parents`` are (revision, constraint)."""

    package: str
    kind: str | None
    api_version: str | None
    parents: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """The canonical source."""
        return canonical_source(self.package)

    @property
    def constraints(self) -> tuple[str, ...]:
        """The constraints of all parents, each once."""
        return tuple(dict.fromkeys(constraint for _, constraint in self.parents))

    @property
    def wanted_by(self) -> str:
        """The parents and their constraints, for a message."""
        return n_and_some_more(
            (f"{parent} wants {constraint or 'any'}" for parent, constraint in self.parents),
            _PARENTS_NAMED,
        )


@dataclass(frozen=True, slots=True)
class Graph:
    """The packages of a Lock and their dependencies, by canonical source."""

    entries: Mapping[str, LockEntry]
    duplicates: Mapping[str, str] = field(default_factory=dict)  # revision → the one that counts

    @classmethod
    def of(cls, entries: Iterable[LockEntry], *, owners: Mapping[str, str] | None = None) -> Graph:
        """Build the graph of a Lock.

        Args:
            entries: the Lock's packages, in its order, which is the order of their installation.
            owners: revision name to package, for those that are known. Of two entries of one
                package the later counts; of two packages with one source the earlier does, and
                the other is a duplicate whose dependencies are not looked at.
        """
        packages = owners or {}
        counting: dict[str, LockEntry] = {}
        duplicates: dict[str, str] = {}
        for entry in entries:
            first = counting.get(entry.key)
            owner = packages.get(entry.name, entry.name)
            if first is None or packages.get(first.name, first.name) == owner:
                counting[entry.key] = entry
            else:
                duplicates[entry.name] = first.name
        return cls(counting, duplicates)

    def evaluate(self, entry: LockEntry) -> Evaluation:
        """Tell what an entry's dependencies are and what is wrong with them.

        Args:
            entry: the revision; it need not be in the Lock, and stands for its source there.
        """
        tree = self._tree(entry)
        missing = tuple(d for key, d in tree.items() if key not in self.entries)
        faults = []
        for dependency in entry.dependencies:
            present = self.entries.get(dependency.key)
            fault = _misfit(present, dependency) if present is not None else ""
            if fault:
                faults.append(fault)
        parts = []
        if missing:
            parts.append(f"missing dependencies: {n_and_some_more(map(str, missing))}")
        if faults:
            parts.append(f"incompatible dependencies: {'; '.join(faults)}")
        return Evaluation(
            found=len(tree),
            installed=len(tree) - len(missing),
            invalid=len(faults),
            missing=missing,
            message="; ".join(parts),
        )

    def _tree(self, entry: LockEntry) -> dict[str, Dependency]:
        """Return all that an entry needs, directly or not, but itself; by canonical source."""
        tree: dict[str, Dependency] = {}
        waiting = [entry]
        while waiting:
            for dependency in waiting.pop().dependencies:
                key = dependency.key
                if key in tree or key == entry.key:
                    continue
                tree[key] = dependency
                if key in self.entries:
                    waiting.append(self.entries[key])
        return tree

    def missing(self) -> tuple[Missing, ...]:
        """Return the packages that are needed and not in the Lock, in the Lock's order.

        Dependencies without a source are left out: they harm only the package that has them.
        """
        wanted: dict[str, list[tuple[Dependency, str]]] = {}
        for entry in self.entries.values():
            for dependency in entry.dependencies:
                if dependency.package and dependency.key not in self.entries:
                    wanted.setdefault(dependency.key, []).append((dependency, entry.name))
        return tuple(_missing(needs) for needs in wanted.values())

    def cycles(self) -> tuple[tuple[str, ...], ...]:
        """Return cycles of sources, as written, in the order of dependence.

        Returns:
            Some cycle where there is any; at most three, which share no package.
        """
        edges = {
            key: [d.key for d in entry.dependencies if d.key in self.entries]
            for key, entry in self.entries.items()
        }
        return tuple(
            tuple(self.entries[key].source for key in reversed(cycle))
            for cycle in islice(_cycles(edges), _CYCLES_NAMED)
        )


def cycle_message(cycles: Sequence[Sequence[str]]) -> str:
    """Return the text of a Lock condition that names cycles; empty without any.

    Args:
        cycles: as ``Graph.cycles`` returns them.
    """
    if not cycles:
        return ""
    paths = "; ".join(" → ".join([*cycle, cycle[0]]) for cycle in cycles)
    return f"cannot sort DAG: detected cycle on: {cycles[0][0]} ({paths})"


def _cycles(edges: Mapping[str, Collection[str]]) -> Iterator[list[str]]:
    left = {node: set(targets) for node, targets in edges.items()}
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            cycle: list[str] = error.args[1][:-1]
        else:
            return
        yield cycle
        gone = set(cycle)
        left = {node: targets - gone for node, targets in left.items() if node not in gone}


def _missing(needs: Sequence[tuple[Dependency, str]]) -> Missing:
    explicit = next((d for d, _ in needs if d.api_version), needs[0][0])
    return Missing(
        package=explicit.package,
        kind=explicit.kind,
        api_version=explicit.api_version,
        parents=tuple((parent, dependency.constraint) for dependency, parent in needs),
    )


def _misfit(present: LockEntry, wanted: Dependency) -> str:
    """Return why an installed package does not fit a dependency, empty when it does."""
    try:
        if satisfies(present.version, wanted.constraint):
            return ""
    except ConstraintError as error:
        return f"dependency {wanted.package}: {error}"
    text = (
        f"existing package {present.source}@{present.version} is incompatible with constraint "
        f"{wanted.constraint}"
    )
    try:
        Version.parse(present.version)
    except VersionError:
        if not is_digest_constraint(wanted.constraint):
            return f"{text} ({present.version or 'an empty version'} is no semantic version)"
    return text


def satisfies(version: str, constraint: str) -> bool:
    """Tell whether an installed version satisfies a dependency's constraint.

    Args:
        version: a tag or a digest.
        constraint: a semantic version constraint, or a digest, which only that digest satisfies.

    Raises:
        ConstraintError: the constraint cannot be read.
    """
    if is_digest_constraint(constraint):
        return version == constraint
    wanted = Constraint.parse(constraint)
    try:
        return wanted.matches(Version.parse(version))
    except VersionError:
        return False


def needs_tags(constraints: Iterable[str]) -> bool:
    """Tell whether choosing a version takes the tags of the repository: any is no digest."""
    return not all(is_digest_constraint(constraint) for constraint in constraints)


def choose_version(tags: Iterable[str], constraints: Sequence[str], *, source: str) -> str:
    """Return the version of a missing package that satisfies all its parents.

    Args:
        tags: the tags of its repository; not looked at when the parents name a digest.
        constraints: of all parents; at least one.
        source: the package's source, for the message.

    Returns:
        The tag of the highest version that all allow, or the one digest that all name.

    Raises:
        DependencyError: a constraint cannot be read, or nothing satisfies all of them.

    Source: Crossplane's choice of the version to install.
    """
    wanted = list(dict.fromkeys(constraints))
    digests = [constraint for constraint in wanted if is_digest_constraint(constraint)]
    listed = " ".join(wanted)
    if digests:
        if len(digests) < len(wanted):
            raise DependencyError(
                f"a dependency package has different types of parent constraints ([{listed}])"
            )
        if len(digests) > 1:
            raise DependencyError(
                f"a dependency package has different digests in parent constraints ([{listed}])"
            )
        return digests[0]
    try:
        parsed = [Constraint.parse(constraint) for constraint in wanted]
    except ConstraintError as error:
        raise DependencyError(f"version constraint on dependency is invalid: {error}") from error
    available = list(tags)
    found = highest(available, parsed)
    if found is not None:
        return found
    newest = highest(available, [Constraint.parse("*")])
    raise DependencyError(
        f"dependency ({source}) does not have a valid version to upgrade that satisfies all "
        "constraints. If there is a valid version that requires downgrade, manual intervention is "
        f"required. Constraints: {wanted[0] if len(wanted) == 1 else f'[{listed}]'} "
        f"({len(available)} tags, the highest release is {newest or 'none'})"
    )


def package_name(source: str) -> str:
    """Return the name of a package object that is created for a source: its repository path."""
    return dns_label(split_source(without_identifier(source))[1])


def package_object(missing: Missing, version: str) -> JsonObject:
    """Return the package object that installs a missing dependency.

    Args:
        missing: the dependency.
        version: a tag, or a digest (``sha256:…``).

    Raises:
        DependencyError: its kind is none that can be installed, or its source is no repository.
    """
    group = (missing.api_version or f"{PKG_GROUP}/v1").partition("/")[0]
    resource = PACKAGES.get(missing.kind or "")
    if resource is None or group != PKG_GROUP:
        raise DependencyError(
            f"cannot construct dependency package: {missing.package}: apiVersion "
            f"{missing.api_version or '(none)'}, kind {missing.kind or '(none)'} is no package; "
            f"expected one of {', '.join(PACKAGES)} of {PKG_GROUP}"
        )
    source = without_identifier(missing.package)
    if not split_source(source)[0]:
        source = canonical_source(source)
    name = package_name(source)
    if not name:
        raise DependencyError(f"dependency package is not valid: {missing.package!r}")
    separator = "@" if ":" in version else ":"
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": name},
        "spec": {"package": f"{source}{separator}{version}"},
    }


def find_package(packages: Iterable[JsonObject], source: str) -> JsonObject | None:
    """Return the package object that already provides a source.

    Args:
        packages: stored packages of all kinds.
        source: the source that is needed, in any spelling.

    Returns:
        The one whose ``spec.package`` names the source, else one that is fetched from it
        (``status.resolvedPackage``); of several the first by name. None when there is none.
    """
    key = canonical_source(source)
    rewritten = None
    for package in sorted(packages, key=lambda p: p["metadata"]["name"]):
        if canonical_source(package["spec"]["package"]) == key:
            return package
        resolved = (package.get("status") or {}).get("resolvedPackage")
        if rewritten is None and resolved and canonical_source(resolved) == key:
            rewritten = package
    return rewritten
