"""Which definitions the API server serves, and reviving one whose establishing was cut off.

Source: Kubernetes' custom resource definitions: ``NamesAccepted`` comes first, ``Established``
follows. An API server that ends between the two leaves the definition at ``Installing``; the next
change of the definition, whichever it is, makes the API server go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from controller.kube.client import ApiError, KubeClient
from controller.kube.discovery import Discovery
from controller.model.objects import ANNOTATION_REVIVED, CRD, JsonObject, Key

log = structlog.get_logger(__name__)

REVIVE_AFTER = 10.0  # seconds in which no kind came to be served, until definitions are looked at
REVIVE_MAX = 50  # definitions that one look reads
QUICK_POLL = 0.25  # seconds between looks at first
SLOW_POLL = 2.0  # and when it takes long
NAMED_AFTER = 10.0  # seconds of waiting after which a message names what is missing


class ServedKinds:
    """Tells which of a package's definitions are not served yet.

    Args:
        client: the API server.
        discovery: what it serves.
    """

    def __init__(self, *, client: KubeClient, discovery: Discovery) -> None:
        self._client = client
        self._discovery = discovery
        self._since: dict[Key, float] = {}  # when a revision began to wait
        self._progress: dict[Key, tuple[int, float]] = {}  # how many are missing, since when

    async def missing(self, key: Key, definitions: Iterable[str]) -> list[str]:
        """Return the definitions that are not served; ask the API server only where it matters.

        Args:
            key: the revision that waits.
            definitions: names, ``<plural>.<group>``.
        """
        names = self._unserved(definitions)
        if names:
            await self._discovery.refresh()
            names = self._unserved(names)
        if not names:
            self.forget(key)
            return []
        now = asyncio.get_running_loop().time()
        self._since.setdefault(key, now)
        count, still = self._progress.get(key, (0, now))
        if count != len(names):
            self._progress[key] = (len(names), now)
        elif now - still >= REVIVE_AFTER:
            self._progress[key] = (len(names), now)
            for name in names[:REVIVE_MAX]:
                await self._revive(name)
        return names

    def pause(self, key: Key) -> float:
        """Return the seconds until a revision that waits looks again: an eighth of its wait."""
        return min(SLOW_POLL, max(QUICK_POLL, self._waited(key) / 8))

    def message(self, key: Key, missing: list[str]) -> str:
        """Return what a revision waits for; the same text at first, so that status stays calm."""
        if self._waited(key) < NAMED_AFTER:
            return "waiting for the API server to serve the kinds of the package"
        more = ", and more" if len(missing) > 1 else ""
        return f"waiting for the API server to serve {missing[0]}{more}"

    def _waited(self, key: Key) -> float:
        now = asyncio.get_running_loop().time()
        return now - self._since.get(key, now)

    def forget(self, key: Key) -> None:
        """Drop what is known of a revision that waits no longer."""
        self._since.pop(key, None)
        self._progress.pop(key, None)

    def _unserved(self, definitions: Iterable[str]) -> list[str]:
        missing = []
        for name in definitions:
            plural, _, group = name.partition(".")
            if not self._discovery.serves(group, plural):
                missing.append(name)
        return missing

    async def _revive(self, name: str) -> None:
        """Make the API server establish a definition that it left half-way."""
        try:
            definition = await self._client.get(CRD, name)
            if not is_stuck(definition):
                return
            version = definition["metadata"]["resourceVersion"]
            annotations = {ANNOTATION_REVIVED: version}
            metadata = {"resourceVersion": version, "annotations": annotations}
            await self._client.merge_patch(CRD, name, {"metadata": metadata})
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise
        else:
            log.info("the API server had left a definition half established", definition=name)


def is_stuck(definition: JsonObject) -> bool:
    """Tell whether a definition's names are accepted and nothing came of it."""
    conditions = {
        condition["type"]: condition
        for condition in (definition.get("status") or {}).get("conditions") or ()
    }
    accepted = conditions.get("NamesAccepted", {}).get("status") == "True"
    established = conditions.get("Established", {})
    half = (established.get("status"), established.get("reason")) == ("False", "Installing")
    return accepted and half
