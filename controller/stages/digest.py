"""The digest stage: finds out which image a package's source names, and creates its revision.

Key: a package. Owns ``Resolved``, ``status.resolvedPackage`` and ``status.currentIdentifier``. The
tag of a source is asked for when the spec changes and, with pull policy Always, once a minute; what
is installed needs no registry.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from controller.flow.worker import Again, Done, Halt, Outcome
from controller.kube.client import ApiError, KubeClient
from controller.model.conditions import (
    FALSE,
    FETCHED,
    PARSED,
    RESOLVED,
    TRUE,
    Condition,
    Report,
    status_of,
)
from controller.model.imageconfig import ImageConfigError
from controller.model.objects import (
    ANNOTATION_DIGEST,
    DNS_LABEL_MAX,
    FIELD_MANAGER,
    JsonObject,
    Key,
    annotations_of,
    is_deleting,
    is_paused,
    key_of,
    name_of,
    resource_of,
    revision_name,
)
from controller.model.revision import (
    ACTIVE,
    INACTIVE,
    MANUAL,
    is_active,
    next_number,
    number_of,
    revision_object,
    runtime_config_of,
    wanted_revision,
)
from controller.registry.client import RegistryError
from controller.stages.backend import ImageBackend, Location
from controller.stages.cluster import Cluster

POLL_INTERVAL = 60.0  # seconds between looks at a tag with pull policy Always
SETTLE_INTERVAL = 2.0  # seconds for a new revision to show in the watch
RETRY_BASE = 5.0  # seconds until a tag is asked again whose image is no usable package
RETRY_CAP = 300.0
RETRY_DOUBLINGS = 6
WAIT_INTERVAL = 5.0  # seconds until a digester that has no answer yet is asked again


@dataclass(frozen=True, slots=True)
class Answer:
    """What a digester last said about a package, and how often in a row it said it."""

    time: float
    subject: tuple[str, str]
    digest: str
    repeats: int


class Digester(Protocol):
    """Tells the manifest digest of a package's source."""

    async def digest(self, package: JsonObject, location: Location) -> str:
        """Return ``sha256:<64 hex>``; empty when it is not known yet."""
        ...


class NopDigester:
    """A digester that never knows: packages wait for their digest forever."""

    async def digest(self, package: JsonObject, location: Location) -> str:
        """Return an empty digest."""
        del package, location
        return ""


class RegistryDigester:
    """A digester that asks the registry.

    Args:
        backend: locates images and holds the registry's client.
    """

    def __init__(self, backend: ImageBackend) -> None:
        self._backend = backend

    async def digest(self, package: JsonObject, location: Location) -> str:
        """Return the digest that the source's reference names, or that its tag has now.

        Raises:
            RegistryError: the registry could not tell.
        """
        return await self._backend.digest(location, package["spec"])


class DigestStage:
    """Resolves the source of one package and makes sure that its revision exists."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        client: KubeClient,
        backend: ImageBackend,
        digester: Digester,
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._backend = backend
        self._digester = digester
        self._answers: dict[Key, Answer] = {}

    async def __call__(self, key: Key) -> Outcome:
        """Resolve the source where the spec or the pull policy asks for it."""
        package = self._cluster.get(key)
        if package is None or is_deleting(package) or is_paused(package):
            self._answers.pop(key, None)
            return Done()
        waiting = self._until_due(key, package)
        if waiting is None:
            return Done(self._known(key))
        if waiting > 0:
            return Again("the tag is looked at again", after=waiting)
        if len(key.name) > DNS_LABEL_MAX:
            return Halt("name too long", report=_failed("NameTooLong", _too_long(key.name)))
        try:
            location = self._backend.locate(package["spec"]["package"])
            digest = await self._digester.digest(package, location)
        except (ImageConfigError, RegistryError) as error:
            return self._cannot_resolve(package, error)
        if not digest:
            return Again("waiting for the digest", after=WAIT_INTERVAL)
        try:
            await self._ensure_revision(key, package, digest)
        except ApiError as error:
            message = f"cannot apply package revision: {error}"
            return Again(message, report=_failed("CannotCreateRevision", message))
        return self._resolved(key, package, location, digest)

    def _known(self, key: Key) -> Report | None:
        """State that the source is resolved where what was said of another one still stands."""
        if status_of(self._cluster.conditions(key), RESOLVED) != FALSE:
            return None
        return Report((Condition(RESOLVED, TRUE, "Resolved"),))

    def _until_due(self, key: Key, package: JsonObject) -> float | None:
        """Return the seconds until the source is to be asked for; None when it is known."""
        answer = self._answers.get(key)
        fresh = answer is not None and answer.subject == _subject(package)
        interval = self._interval(key, package, answer if fresh else None)
        if interval is None or answer is None or not fresh:
            return None if interval is None else 0.0
        return answer.time + interval - asyncio.get_running_loop().time()

    def _interval(self, key: Key, package: JsonObject, answer: Answer | None) -> float | None:
        wanted = wanted_revision(package, self._cluster.revisions(key))
        known = self._cluster.status_fields(key).get("currentIdentifier")
        if wanted is None or known != package["spec"]["package"]:
            return SETTLE_INTERVAL
        conditions = self._cluster.conditions(key_of(wanted))
        if FALSE in (status_of(conditions, FETCHED), status_of(conditions, PARSED)):
            # What the tag named is no usable package: it may be pushed anew.
            repeats = answer.repeats if answer is not None else 0
            return min(RETRY_CAP, RETRY_BASE * 2.0 ** min(repeats, RETRY_DOUBLINGS))
        always = package["spec"].get("packagePullPolicy") == "Always"
        return POLL_INTERVAL if always else None

    def _cannot_resolve(self, package: JsonObject, error: Exception) -> Outcome:
        source = package["spec"]["package"]
        message = f"cannot unpack package: cannot resolve {source} to digest: {error}"
        report = _failed(type(error).__name__, message)
        if not isinstance(error, RegistryError) or error.final:
            return Halt(message, report=report)
        return Again(message, after=error.retry_after, report=report)

    async def _ensure_revision(self, key: Key, package: JsonObject, digest: str) -> None:
        """Create the revision of a digest, or make the one that exists the wanted one."""
        revisions = self._cluster.revisions(key)
        runtime_config = runtime_config_of(package["spec"])
        known = next(
            (
                revision
                for revision in revisions
                if annotations_of(revision).get(ANNOTATION_DIGEST) == digest
                and runtime_config_of(revision["spec"]) == runtime_config
                and not is_deleting(revision)
            ),
            None,
        )
        if known is not None and known is wanted_revision(package, revisions):
            return
        automatic = package["spec"].get("revisionActivationPolicy") != MANUAL
        alone = not any(is_active(revision) for revision in revisions)
        state = ACTIVE if automatic and alone else INACTIVE
        number = next_number(revisions)
        name = revision_name(key.name, digest, runtime_config)
        if known is not None:
            state = known["spec"].get("desiredState") or state
            name = name_of(known)
            newest = number_of(known) == number - 1
            number = number_of(known) if newest else number
        body = revision_object(package, name=name, digest=digest, number=number, state=state)
        resource = resource_of(body["kind"])
        await self._client.apply(resource, name, body, field_manager=FIELD_MANAGER)

    def _resolved(self, key: Key, package: JsonObject, location: Location, digest: str) -> Outcome:
        fields = {
            "currentIdentifier": package["spec"]["package"],
            "resolvedPackage": str(location.resolved),
            "appliedImageConfigRefs": list(location.applied) or None,
        }
        condition = Condition(RESOLVED, TRUE, "Resolved")
        report = Report((condition,), fields)
        subject, before = _subject(package), self._answers.get(key)
        same = before is not None and (before.subject, before.digest) == (subject, digest)
        repeats = before.repeats + 1 if same and before is not None else 0
        now = asyncio.get_running_loop().time()
        self._answers[key] = Answer(now, subject, digest, repeats)
        interval = self._interval(key, package, self._answers[key])
        if interval is None or interval == SETTLE_INTERVAL:
            return Done(report)
        return Again("the tag is looked at again", after=interval, report=report)


def _subject(package: JsonObject) -> tuple[str, str]:
    """Return what an answer of the digester is about."""
    return package["spec"]["package"], runtime_config_of(package["spec"])


def _failed(reason: str, message: str) -> Report:
    return Report((Condition(RESOLVED, FALSE, reason, message),))


def _too_long(name: str) -> str:
    return (
        f"cannot unpack package: the name of the package has {len(name)} characters; "
        f"at most {DNS_LABEL_MAX} fit into the label of its revisions: use a shorter name"
    )
