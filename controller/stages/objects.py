"""Writing the objects of one package: which need a write, may they be taken, then each one once.

Guarantees:
    Nothing is written before the ownership of all objects was checked and every change of content
    passed a dry run. A fresh object costs one request, one that is right none. One object's
    failure does not keep the others from being written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

import orjson

from controller.kube.client import ApiError, KubeClient
from controller.kube.informers import MetadataInformers
from controller.model.content import Entry
from controller.model.establishment import (
    HASH_LENGTH,
    WEBHOOK_KINDS,
    Owners,
    Webhook,
    Write,
    content_hash,
    decide,
    owner_references,
    package_object,
    with_note,
)
from controller.model.objects import (
    FIELD_MANAGER,
    JsonObject,
    Resource,
    controller_of,
    generation_of,
)
from controller.stages.backend import PackageContent

MAX_NAMED = 3  # failures that a message names
MAX_FAILURES = 10  # failures after which the rest is left for the next try


Action: TypeAlias = Callable[["Item", bytes], Awaitable[None]]


class EstablishError(Exception):
    """Objects cannot be established; the text names them and what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Common:
    """What a revision adds to every object of its package."""

    owners: Owners
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    webhook: Webhook | None
    webhook_name: str

    def name_of(self, entry: Entry) -> str:
        """Return the name under which an object of the package is stored."""
        return self.webhook_name if entry.kind in WEBHOOK_KINDS else entry.name

    def fingerprint(self) -> str:
        """Return a hash of what is added, without owners."""
        webhook = self.webhook
        address = [webhook.service, webhook.namespace, webhook.ca_bundle] if webhook else []
        return content_hash(
            {"labels": dict(self.labels), "annotations": dict(self.annotations), "to": address}
        )


@dataclass(frozen=True, slots=True)
class Item:
    """One object of a package and the write that it needs."""

    entry: Entry
    resource: Resource
    name: str
    content: str
    write: Write


class ObjectWriter:
    """Brings the objects of packages into the cluster.

    Args:
        client: the API server.
        metadata: informers of the kinds that packages hold; those of a run must be synced.
        writers: how many requests are under way at once, for all packages together.
    """

    def __init__(self, *, client: KubeClient, metadata: MetadataInformers, writers: int) -> None:
        self._client = client
        self._metadata = metadata
        self._writers = writers
        self._slots = asyncio.Semaphore(writers)

    async def run(
        self,
        content: PackageContent,
        resources: Mapping[tuple[str, str], Resource],
        common: Common,
        *,
        may_replace: Callable[[JsonObject], bool],
    ) -> list[Item]:
        """Write what the objects of a package need.

        Args:
            content: the opened package.
            resources: the resource of each ``(apiVersion, kind)`` in it.
            common: owners, labels, annotations and webhook address of the revision.
            may_replace: tells whether a controller reference may be taken over.

        Returns:
            All objects of the package, in its order.

        Raises:
            EstablishError: an object has another live controller, or the API server refused some;
                the text names up to three of them.
        """
        items = self._decide(content.entries, resources, common, may_replace)
        self._check_ownership(items)
        due = [item for item in items if item.write is not Write.NOTHING]
        upgrade = any(item.write in (Write.CHANGE, Write.ADOPT) for item in due)
        rehearsed = [
            item
            for item in due
            if item.write is Write.CHANGE or (upgrade and item.write is Write.CREATE)
        ]
        generations: dict[int, int] = {}

        async def rehearse(item: Item, line: bytes) -> None:
            answer = await self._apply(line, item, common, generation=0, dry_run=True)
            generations[item.entry.offset] = generation_of(answer)

        async def write(item: Item, line: bytes) -> None:
            generation = generations.get(item.entry.offset, self._generation(item))
            answer = await self._apply(line, item, common, generation=generation)
            self._metadata.note(item.resource, answer)

        await self._each(content, rehearsed, rehearse)
        await self._each(content, due, write)
        return items

    def _decide(
        self,
        entries: Sequence[Entry],
        resources: Mapping[tuple[str, str], Resource],
        common: Common,
        may_replace: Callable[[JsonObject], bool],
    ) -> list[Item]:
        added = common.fingerprint()
        items = []
        for entry in entries:
            resource = resources[entry.api_version, entry.kind]
            name = common.name_of(entry)
            content = f"{entry.sha256[:HASH_LENGTH]}-{added}"
            write = decide(
                self._metadata.get(resource, name),
                content=content,
                labels=common.labels,
                owners=common.owners,
                may_replace=may_replace,
            )
            items.append(Item(entry, resource, name, content, write))
        return items

    def _check_ownership(self, items: Sequence[Item]) -> None:
        refused = [item for item in items if item.write is Write.REFUSE]
        if not refused:
            return
        texts = []
        for item in refused[:MAX_NAMED]:
            owner = controller_of(self._metadata.get(item.resource, item.name) or {}) or {}
            texts.append(
                f"{item.name} is already controlled by {owner.get('kind')} {owner.get('name')} "
                f"(UID {owner.get('uid')})"
            )
        message = _listed(texts, len(refused))
        remedy = "remove that package, or the objects' owner references, to hand them over"
        raise EstablishError("ControlledByAnother", f"{message}; {remedy}")

    def _generation(self, item: Item) -> int:
        """Return the generation that a write without a rehearsal leads to."""
        stored = self._metadata.get(item.resource, item.name)
        return generation_of(stored) if stored is not None else 1

    async def _apply(
        self, line: bytes, item: Item, common: Common, *, generation: int, dry_run: bool = False
    ) -> JsonObject:
        obj = package_object(
            orjson.loads(line),
            labels=common.labels,
            annotations=common.annotations,
            webhook=common.webhook,
            webhook_name=common.webhook_name,
        )
        references = owner_references(common.owners, self._metadata.get(item.resource, item.name))
        body = with_note(obj, content=item.content, generation=generation, references=references)
        async with self._slots:
            return await self._client.apply(
                item.resource, item.name, body, field_manager=FIELD_MANAGER, dry_run=dry_run
            )

    async def _each(self, content: PackageContent, items: Sequence[Item], action: Action) -> None:
        """Run an action on objects, a few at a time, as they are read.

        Raises:
            EstablishError: the API server refused some; the others were still tried.
        """
        if not items:
            return
        wanted = {item.entry.offset: item for item in items}
        failures: list[tuple[Item, ApiError]] = []
        read: asyncio.Queue[tuple[Item, bytes] | None] = asyncio.Queue(maxsize=self._writers)

        async def work() -> None:
            while (job := await read.get()) is not None:
                try:
                    await action(*job)
                except ApiError as error:
                    failures.append((job[0], error))

        async with asyncio.TaskGroup() as tasks, aclosing(content.objects()) as objects:
            for _ in range(self._writers):
                tasks.create_task(work())
            async for entry, line in objects:
                item = wanted.pop(entry.offset, None)
                if item is not None:
                    await read.put((item, line))
                if not wanted or len(failures) >= MAX_FAILURES:
                    break
            for _ in range(self._writers):
                await read.put(None)
        if failures:
            texts = [
                f"cannot apply {item.entry.kind} {item.name}: {error}"
                for item, error in failures[:MAX_NAMED]
            ]
            raise EstablishError("CannotApply", _listed(texts, len(failures)))


def _listed(texts: Sequence[str], total: int) -> str:
    more = f"; and {total - len(texts)} more" if total > len(texts) else ""
    return "; ".join(texts) + more
