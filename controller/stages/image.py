"""The image stage: verifies, fetches, parses and checks the content of a revision's image.

Key: a revision. Owns ``Fetched``, ``Verified``, ``Parsed``, ``Linted``, ``Cached``, the revision's
``resolvedImage``, ``capabilities`` and ``appliedImageConfigRefs``, and the labels and annotations
that a package's metadata gives its revision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controller.flow.worker import Again, Done, Halt, Outcome
from controller.kube.client import KubeClient
from controller.model.conditions import (
    CACHED,
    FALSE,
    FETCHED,
    LINTED,
    PARSED,
    PAUSED,
    RESUMED,
    SYNCED,
    TRUE,
    VERIFIED,
    Condition,
    Report,
    is_true,
)
from controller.model.imageconfig import ImageConfigError
from controller.model.lint import check_crossplane_version, validate
from controller.model.manifest import ManifestError
from controller.model.objects import (
    FIELD_MANAGER_METADATA,
    LABEL_PACKAGE,
    LOCK_KEY,
    JsonObject,
    Key,
    annotations_of,
    generation_of,
    is_deleting,
    is_paused,
    labels_of,
    package_kind,
    resource_of,
)
from controller.registry.client import RegistryError
from controller.stages.backend import ImageBackend, Location, PackageContent
from controller.stages.cluster import Cluster
from controller.xpkg.errors import XpkgError

MAX_NAMED = 5  # findings that a condition names
OUR_PREFIX = "crossdock.io/"


class ImageStage:
    """Makes the content of one revision known to be good, and cached."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        client: KubeClient,
        backend: ImageBackend,
        crossplane_version: str,
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._backend = backend
        self._crossplane_version = crossplane_version

    async def __call__(self, key: Key) -> Outcome:
        """Check the content of a revision, once for each content and spec."""
        revision = self._cluster.get(key)
        if revision is None:
            return Done()
        if is_paused(revision):
            return Done(PAUSED)
        if is_deleting(revision):
            return Done(next=(("evict", key),))
        try:
            location = self._backend.locate(revision["spec"]["image"])
        except ImageConfigError as error:
            message = f"cannot get package: {error}"
            return Halt(message, report=_failed(FETCHED, "InvalidImageConfig", message))
        if location.verification is not None:
            return Halt("verification is required", report=_unverified(location))
        if self._is_checked(key, revision):
            return Done(self._restated(key), next=(("resolve", key),))
        return await self._check(key, revision, location)

    def _is_checked(self, key: Key, revision: JsonObject) -> bool:
        """Tell whether this content was already checked for this spec; nothing is read for it."""
        conditions = self._cluster.conditions(key)
        parsed = conditions.get(PARSED)
        if parsed is None or not is_true(conditions, PARSED) or not is_true(conditions, FETCHED):
            return False
        if not is_true(conditions, VERIFIED):
            return False
        return parsed.observed_generation in (None, generation_of(revision))

    def _restated(self, key: Key) -> Report:
        stated = self._cluster.conditions(key)
        resumed = (RESUMED,) if SYNCED in stated else ()
        return Report((*(stated[kind] for kind in (FETCHED, VERIFIED, PARSED)), *resumed))

    async def _check(self, key: Key, revision: JsonObject, location: Location) -> Outcome:
        try:
            async with self._backend.open(revision) as content:
                return await self._checked(key, revision, location, content)
        except RegistryError as error:
            message = f"cannot get package: cannot fetch package {location.resolved}: {error}"
            report = _failed(FETCHED, type(error).__name__, message)
            if error.final:
                return Halt(message, report=report)
            return Again(message, after=error.retry_after, report=report)
        except (ManifestError, XpkgError) as error:
            message = f"cannot get package: cannot parse package {location.resolved}: {error}"
            fetched = Condition(FETCHED, TRUE, "Fetched")
            verified = Condition(VERIFIED, TRUE, "NotRequired")
            parsed = Condition(PARSED, FALSE, type(error).__name__, message)
            return Halt(message, report=Report((fetched, verified, parsed)))

    async def _checked(
        self, key: Key, revision: JsonObject, location: Location, content: PackageContent
    ) -> Outcome:
        parsed = self._validated(revision, content)
        conditions = [
            Condition(FETCHED, TRUE, "Fetched"),
            Condition(VERIFIED, TRUE, "NotRequired"),
            parsed,
            _linted(content),
        ]
        if content.uncached is not None:
            conditions.append(Condition(CACHED, FALSE, "CacheUnavailable", content.uncached))
        elif CACHED in self._cluster.conditions(key):
            conditions.append(Condition(CACHED, TRUE, "Cached"))
        fields: dict[str, Any] = {
            "resolvedImage": str(location.resolved),
            "appliedImageConfigRefs": list(location.applied) or None,
        }
        if SYNCED in self._cluster.conditions(key):
            conditions.append(RESUMED)
        report = Report(tuple(conditions), fields)
        if parsed.status != TRUE:
            return Halt(parsed.message, report=report)
        fields["capabilities"] = _capabilities(content.meta) or None
        await self._copy_metadata(revision, content.meta)
        next_keys = (("resolve", key), ("resolve", LOCK_KEY))
        return Done(report, next=next_keys)

    def _validated(self, revision: JsonObject, content: PackageContent) -> Condition:
        """Return ``Parsed``: what the package says of itself fits the revision and this cluster."""
        faults = validate(package_kind(revision["kind"]), content.meta)
        if faults:
            message = f"validating package contents failed: {'; '.join(faults)}"
            return Condition(PARSED, FALSE, "InvalidPackage", message)
        if not revision["spec"].get("ignoreCrossplaneConstraints"):
            fault = check_crossplane_version(content.meta, self._crossplane_version)
            if fault is not None:
                message = f"incompatible Crossplane version: {fault}"
                return Condition(PARSED, FALSE, "IncompatibleCrossplaneVersion", message)
        return Condition(PARSED, TRUE, "Parsed")

    async def _copy_metadata(self, revision: JsonObject, meta: JsonObject) -> None:
        """Give the revision the labels and annotations of its package's metadata."""
        metadata = meta.get("metadata") or {}
        labels = _foreign(metadata.get("labels"))
        annotations = _foreign(metadata.get("annotations"))
        labelled = labels.items() <= labels_of(revision).items()
        if labelled and annotations.items() <= annotations_of(revision).items():
            return
        resource = resource_of(revision["kind"])
        name = revision["metadata"]["name"]
        body = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "labels": labels, "annotations": annotations},
        }
        await self._client.apply(resource, name, body, field_manager=FIELD_MANAGER_METADATA)


def _foreign(values: Mapping[str, str] | None) -> dict[str, str]:
    """Return the labels or annotations that a package may set: not those the manager lives by."""
    return {
        name: value
        for name, value in (values or {}).items()
        if name != LABEL_PACKAGE and not name.startswith(OUR_PREFIX)
    }


def _failed(kind: str, reason: str, message: str) -> Report:
    return Report((Condition(kind, FALSE, reason, message),))


def _unverified(location: Location) -> Report:
    message = (
        f"ImageConfig {location.verification} asks for the signature of {location.resolved} to be "
        "verified, which this version of crossdock cannot do yet; the package is not installed. "
        "Narrow the ImageConfig's matchImages, or remove its verification"
    )
    return _failed(VERIFIED, "VerificationNotSupported", message)


def _linted(content: PackageContent) -> Condition:
    """Return ``Linted``: what of the package is not installed, or doubtful."""
    findings = content.findings
    if not findings:
        return Condition(LINTED, TRUE, "NoFindings")
    named = "; ".join(findings[:MAX_NAMED])
    more = f"; and {len(findings) - MAX_NAMED} more" if len(findings) > MAX_NAMED else ""
    message = f"linting package contents failed: {named}{more}"
    return Condition(LINTED, FALSE, "Findings", message)


def _capabilities(meta: JsonObject) -> list[str]:
    """Return the package's capabilities; a Function without any has ``composition``."""
    spec = meta.get("spec") or {}
    if spec.get("capabilities") is None and meta["kind"] == "Function":
        return ["composition"]
    return list(spec.get("capabilities") or [])
