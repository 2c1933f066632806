"""The resolve stage: keeps the Lock, tells what packages miss, and has it installed.

Keys: the Lock, whose pass does the work, and revisions, which ask to be handed on once their
dependencies are there. Owns the Lock, ``DependenciesReady`` and the dependency counters. One worker
runs it, so the Lock has one writer, and changes that arrive together are written together. One
package's fault is that package's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from controller.flow.worker import Again, Done, Outcome
from controller.kube.client import ApiError, KubeClient
from controller.model.conditions import (
    DEPENDENCIES_READY,
    FALSE,
    PARSED,
    RESOLVED,
    TRUE,
    Condition,
    Report,
    is_true,
)
from controller.model.graph import (
    Graph,
    Missing,
    cycle_message,
    find_package,
)
from controller.model.imageconfig import ImageConfigError
from controller.model.lock import (
    Dependency,
    DependencyError,
    LockEntry,
    dependencies_of,
    kind_of,
    without_identifier,
)
from controller.model.objects import (
    LABEL_PACKAGE,
    LOCK,
    LOCK_KEY,
    LOCK_NAME,
    PACKAGES,
    JsonObject,
    Key,
    generation_of,
    is_deleting,
    key_of,
    labels_of,
    name_of,
    package_kind,
)
from controller.model.revision import is_active
from controller.registry.client import RegistryError
from controller.stages.backend import ImageBackend
from controller.stages.cluster import Cluster
from controller.stages.installer import DependencyInstaller
from controller.xpkg.errors import XpkgError

LOCK_SETTLE = 0.1  # seconds for the watch to show the Lock as it is


@dataclass(slots=True)
class Findings:
    """What one pass found out about the revisions."""

    entries: dict[str, LockEntry] = field(default_factory=dict)  # by revision name
    revisions: dict[str, JsonObject] = field(default_factory=dict)
    faults: dict[str, Condition] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # faults that time may mend
    candidates: set[str] = field(default_factory=set)  # checked, but not in the Lock


class ResolveStage:
    """Resolves the dependencies of all revisions together.

    Args:
        cluster: stores and statuses.
        client: the API server.
        backend: tells the metadata of packages.
        installer: creates packages for what is missing.
        report: takes conditions of revisions and of the Lock.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        client: KubeClient,
        backend: ImageBackend,
        installer: DependencyInstaller,
        report: Callable[[Key, str, Report], None],
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._backend = backend
        self._installer = installer
        self._report = report
        self._asked: set[Key] = set()

    async def __call__(self, key: Key) -> Outcome:
        """Note who asks, or bring the Lock and all dependencies up to date."""
        if key != LOCK_KEY:
            self._asked.add(key)
            return Done(next=(("resolve", LOCK_KEY),))
        lock = self._cluster.lock()
        if lock is None:
            return Again("the Lock does not exist: run `crossdock init` to make it")
        findings = await self._find(lock)
        try:
            packages = await self._write_lock(lock, findings)
        except ApiError as error:
            if not error.conflict:
                raise
            return Again("the Lock changed meanwhile", after=LOCK_SETTLE)
        entries = [LockEntry.from_json(entry) for entry in packages]
        owners = {
            name: labels_of(revision).get(LABEL_PACKAGE, "")
            for name, revision in findings.revisions.items()
        }
        graph = Graph.of(entries, owners=owners)
        wanted = self._installer.want(self._due(graph, findings))
        failures = self._installer.failures
        ready = self._state(graph, findings, failures)
        self._state_lock(graph, failures, is_empty=not entries)
        next_keys = (
            *(("prepare", key) for key in ready),
            *(("install", key) for key in wanted),
        )
        if findings.unread:
            return Again(findings.unread[0], next=next_keys)
        return Done(next=next_keys)

    async def _find(self, lock: JsonObject) -> Findings:
        """Collect the Lock entries that the revisions ask for."""
        listed = lock.get("packages") or ()
        present = {(entry["name"], kind_of(entry)): entry for entry in listed}
        findings = Findings()
        for revision in self._cluster.all_revisions():
            name = name_of(revision)
            if is_deleting(revision):
                continue
            claims = is_active(revision) and self._cluster.is_claimant(revision)
            entry = present.get((name, package_kind(revision["kind"])))
            parsed = is_true(self._cluster.conditions(key_of(revision)), PARSED)
            if not parsed and not (claims and entry is not None):
                continue
            if not claims and not self._is_candidate(revision):
                continue
            findings.revisions[name] = revision
            if not claims:
                findings.candidates.add(name)
            try:
                findings.entries[name] = await self._entry(revision, entry)
            except (DependencyError, XpkgError, RegistryError, ImageConfigError) as error:
                message = f"cannot resolve package dependencies: {error}"
                if isinstance(error, RegistryError) and not error.final:
                    findings.unread.append(message)
                findings.faults[name] = Condition(
                    DEPENDENCIES_READY, FALSE, type(error).__name__, message
                )
        return findings

    def _is_candidate(self, revision: JsonObject) -> bool:
        """Tell whether an inactive revision is the one that its package's spec asks for."""
        package = self._cluster.package_of(revision)
        return package is not None and package["spec"]["package"] == revision["spec"]["image"]

    async def _entry(self, revision: JsonObject, present: JsonObject | None) -> LockEntry:
        """Return the Lock entry of a revision; its metadata is read only when the Lock lacks it."""
        image = revision["spec"]["image"]
        source = without_identifier(image)
        identifier = image[len(source) + 1 :]
        version = identifier.partition("@")[0] or identifier
        resource = PACKAGES[package_kind(revision["kind"])]
        if revision["spec"].get("skipDependencyResolution"):
            dependencies: tuple[Dependency, ...] = ()
        elif (
            present is not None
            and (present["source"], present["version"]) == (source, version)
            and self._is_stated(revision)
        ):
            dependencies = LockEntry.from_json(present).dependencies
        else:
            dependencies = dependencies_of(await self._backend.metadata(revision))
        return LockEntry(
            name=name_of(revision),
            source=source,
            version=version,
            dependencies=dependencies,
            kind=resource.kind,
            api_version=resource.api_version,
        )

    def _is_stated(self, revision: JsonObject) -> bool:
        """Tell whether the Lock's dependencies are those of the revision's present spec."""
        stated = self._cluster.conditions(key_of(revision)).get(DEPENDENCIES_READY)
        return stated is not None and stated.observed_generation == generation_of(revision)

    async def _write_lock(self, lock: JsonObject, findings: Findings) -> list[JsonObject]:
        """Write the Lock's packages where they differ; return them.

        Entries keep their order, which is the order of installation. An entry whose revision is
        gone, inactive or being deleted goes.
        """
        present = lock.get("packages") or []
        wanted = {n: e for n, e in findings.entries.items() if n not in findings.candidates}
        packages = []
        for entry in present:
            name = entry["name"]
            if name in wanted:
                packages.append(wanted.pop(name).to_json())
            elif name in findings.faults:
                packages.append(entry)
        packages += [entry.to_json() for entry in wanted.values()]
        if packages != present:
            version = lock["metadata"]["resourceVersion"]
            patch = {"metadata": {"resourceVersion": version}, "packages": packages}
            await self._client.merge_patch(LOCK, LOCK_NAME, patch)
        return packages

    def _due(self, graph: Graph, findings: Findings) -> list[Missing]:
        """Return what is missing and not even asked for by a package object yet."""
        missing = {need.key: need for need in graph.missing()}
        with_candidates = [
            *graph.entries.values(),
            *(findings.entries[name] for name in findings.candidates & findings.entries.keys()),
        ]
        for need in Graph.of(with_candidates).missing():
            missing.setdefault(need.key, need)
        packages = self._cluster.packages()
        return [n for n in missing.values() if find_package(packages, n.package) is None]

    def _state(self, graph: Graph, findings: Findings, failures: Mapping[str, str]) -> list[Key]:
        """Report the dependencies of each revision; return those that can go on."""
        going_on = []
        for name, revision in findings.revisions.items():
            key = key_of(revision)
            before = self._cluster.conditions(key).get(DEPENDENCIES_READY)
            report = self._report_of(graph, findings, failures, name)
            condition = report.conditions[0]
            same = before is not None and (before.status, before.reason, before.message) == (
                condition.status,
                condition.reason,
                condition.message,
            )
            current = before is not None and before.observed_generation == generation_of(revision)
            if not (same and current):
                self._report(key, "resolve", report)
            newly = not (same and current) or key in self._asked
            if condition.status == TRUE and newly:
                going_on.append(key)
                self._asked.discard(key)
        self._asked = {key for key in self._asked if self._cluster.get(key) is not None}
        return going_on

    def _report_of(
        self, graph: Graph, findings: Findings, failures: Mapping[str, str], name: str
    ) -> Report:
        fault = findings.faults.get(name)
        if fault is not None:
            return Report((fault,))
        entry = findings.entries[name]
        evaluation = graph.evaluate(entry)
        fields = {
            "foundDependencies": evaluation.found,
            "installedDependencies": evaluation.installed,
            "invalidDependencies": evaluation.invalid,
        }
        first = graph.duplicates.get(name)
        message = evaluation.message
        reason = "DependenciesNotReady"
        if first is not None:
            reason = "DuplicateSource"
            message = (
                f"{entry.source} is already installed by revision {first}: remove one of the two "
                "packages, or change its spec.package"
            )
        if findings.revisions[name]["spec"].get("skipDependencyResolution") or not message:
            condition = Condition(DEPENDENCIES_READY, TRUE, "DependenciesReady")
        else:
            causes = [failures[d.key] for d in evaluation.missing if d.key in failures]
            text = "; ".join([f"cannot resolve package dependencies: {message}", *causes])
            condition = Condition(DEPENDENCIES_READY, FALSE, reason, text)
        return Report((condition,), fields)

    def _state_lock(self, graph: Graph, failures: Mapping[str, str], *, is_empty: bool) -> None:
        if is_empty and not self._cluster.conditions(LOCK_KEY):
            return
        error = cycle_message(graph.cycles()) or next(iter(failures.values()), "")
        condition = Condition(RESOLVED, TRUE, "DependencyResolutionSucceeded")
        if error:
            message = f"Error occurred during dependency resolution {error}"
            condition = Condition(RESOLVED, FALSE, "DependencyResolutionFailed", message)
        self._report(LOCK_KEY, "resolve", Report((condition,)))
