"""The tree of a package: its revisions, and through the Lock what it depends on. Pure.

Source: Crossplane's ``resource trace`` for packages; its Lock, whose entries are named by revision
and point to each other by source.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from controller.cli.render import Branch
from controller.model.lock import Dependency, LockEntry, split_source
from controller.model.objects import (
    LABEL_PACKAGE,
    PACKAGES,
    REVISIONS,
    JsonObject,
    dns_label,
    labels_of,
    name_of,
    package_kind,
)

Identity = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a tree shows below a package."""

    dependencies: Literal["unique", "all", "none"] = "unique"
    revisions: Literal["active", "all", "none"] = "active"


@dataclass(frozen=True, slots=True)
class Node:
    """One line of a tree: a stored object, or a dependency that nobody installed."""

    kind: str
    name: str
    object: JsonObject | None
    source: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Packages, revisions and Lock entries of a cluster at one time."""

    packages: tuple[JsonObject, ...]
    revisions: tuple[JsonObject, ...]
    needs: dict[str, tuple[Dependency, ...]]
    locked: dict[str, str]
    by_identity: dict[Identity, JsonObject] = field(default_factory=dict)
    by_revision: dict[str, JsonObject] = field(default_factory=dict)

    @classmethod
    def of(cls, objects: Iterable[JsonObject]) -> Snapshot:
        """Sort objects of all package kinds, revision kinds and the Lock into a snapshot.

        Args:
            objects: stored objects that carry their kind; others than these are ignored.
        """
        found = list(objects)
        packages = tuple(o for o in found if o["kind"] in PACKAGES)
        revisions = tuple(o for o in found if o["kind"] in REVISIONS)
        locks = [o for o in found if o["kind"] == "Lock"]
        entries = [LockEntry.from_json(e) for lock in locks for e in lock.get("packages") or ()]
        return cls(
            packages,
            revisions,
            {entry.name: entry.dependencies for entry in entries},
            {entry.key: entry.name for entry in entries},
            {(p["kind"], name_of(p)): p for p in packages},
            _owners(packages, revisions),
        )

    def dependencies_of(self, package: JsonObject) -> tuple[Dependency, ...]:
        """Return what the version that runs depends on, as the Lock has it."""
        return self.needs.get((package.get("status") or {}).get("currentRevision", ""), ())

    def find(self, dependency: Dependency) -> Node:
        """Return the package that answers a dependency, or a node that says there is none."""
        package = self.by_revision.get(self.locked.get(dependency.key, ""))
        kind = dependency.kind or "Package"
        guess = dns_label(split_source(dependency.key)[1])
        if package is None:
            package = self.by_identity.get((kind, guess))
        if package is not None:
            return Node(package["kind"], name_of(package), package)
        note = f"not installed: needs {dependency.package} {dependency.constraint}".rstrip()
        return Node(kind, guess, None, dependency.package, note)


def _owners(
    packages: Iterable[JsonObject], revisions: Iterable[JsonObject]
) -> dict[str, JsonObject]:
    """Return the package of each revision name."""
    by_identity = {(p["kind"], name_of(p)): p for p in packages}
    owners = {}
    for revision in revisions:
        identity = (package_kind(revision["kind"]), labels_of(revision).get(LABEL_PACKAGE, ""))
        if identity in by_identity:
            owners[name_of(revision)] = by_identity[identity]
    return owners


@dataclass(slots=True)
class _Growing:
    """A node whose children are still being found."""

    node: Node
    ancestors: frozenset[Identity]
    children: list[_Growing] = field(default_factory=list)

    def grown(self) -> Branch[Node]:
        return Branch(self.node, tuple(child.grown() for child in self.children))


def package_tree(root: JsonObject, snapshot: Snapshot, shown: Shown) -> Branch[Node]:
    """Return the tree below a package, breadth first: revisions, then dependencies.

    Args:
        root: a package of the snapshot.
        snapshot: everything that may be in the tree.
        shown: which revisions and dependencies are. With ``unique`` a package stands only where
            it is met first; a package is never shown below itself.

    Returns:
        The tree.
    """
    start = _Growing(Node(root["kind"], name_of(root), root), frozenset())
    seen: set[Identity] = {(root["kind"], name_of(root))}
    pending = deque([start])
    while pending:
        here = pending.popleft()
        if here.node.object is None:
            continue
        here.children += (
            _Growing(node, frozenset()) for node in _revisions(here.node.object, snapshot, shown)
        )
        if shown.dependencies == "none":
            continue
        above = here.ancestors | {(here.node.kind, here.node.name)}
        for dependency in snapshot.dependencies_of(here.node.object):
            node = snapshot.find(dependency)
            identity = (node.kind, node.name)
            if identity in above or (shown.dependencies == "unique" and identity in seen):
                continue
            seen.add(identity)
            child = _Growing(node, above)
            here.children.append(child)
            pending.append(child)
    return start.grown()


def _revisions(package: JsonObject, snapshot: Snapshot, shown: Shown) -> list[Node]:
    """Return the revisions of a package that are shown, oldest first."""
    if shown.revisions == "none":
        return []
    states = {"Active"} if shown.revisions == "active" else {"Active", "Inactive"}
    mine = [
        revision
        for revision in snapshot.revisions
        if package_kind(revision["kind"]) == package["kind"]
        and labels_of(revision).get(LABEL_PACKAGE) == name_of(package)
        and revision["spec"].get("desiredState") in states
    ]
    mine.sort(key=lambda r: (r["metadata"].get("creationTimestamp", ""), r["spec"]["revision"]))
    return [Node(revision["kind"], name_of(revision), revision) for revision in mine]
