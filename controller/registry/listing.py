"""Lists that a registry gives: the tags of a repository, and what refers to a manifest.

Source: the OCI distribution specification ("Listing Tags", "Listing Referrers").
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar
from urllib.parse import quote

from controller.registry.authorized import Authorized
from controller.registry.credentials import Keychain
from controller.registry.failures import (
    MalformedManifest,
    NotFound,
    RegistryError,
    RegistryUnavailable,
    UnsupportedMedia,
)
from controller.registry.media import (
    OCI_INDEX,
    Descriptor,
    Index,
    decode_manifest,
    digest_of,
    load_json,
)
from controller.registry.reference import Reference, is_tag
from controller.registry.wire import Answer, Ask, Limits, exceeded

T = TypeVar("T")

TAGS_ASKED = 1000
# Answers of registries that do not know the referrers API.
NO_REFERRERS = frozenset({400, 404, 405, 406, 501})
REFERRERS_MAX = 10_000


class Lists:
    """Reads lists, page by page.

    Args:
        limits: pages, entries and sizes.
        authorized: sends the requests.
    """

    def __init__(self, limits: Limits, authorized: Authorized) -> None:
        self._limits = limits
        self._call = authorized.call

    async def tags(self, reference: Reference, keychain: Keychain) -> list[str]:
        """Return the tags of a repository; see ``RegistryClient.tags``."""
        found: dict[str, None] = {}
        start = f"/v2/{reference.repository}/tags/list?n={TAGS_ASKED}"

        def keep(page: list[str]) -> None:
            found.update(dict.fromkeys(tag for tag in page if is_tag(tag)))
            if len(found) > self._limits.tags:
                raise exceeded(f"more than {self._limits.tags} tags", "tags")

        ask = Ask("tags", "GET", start, {"Accept": "application/json"})
        await self._pages(reference, ask, keychain, self._tags_page, keep)
        return list(found)

    async def referrers(
        self, reference: Reference, digest: str, keychain: Keychain, artifact_type: str
    ) -> list[Descriptor]:
        """Return what refers to a manifest; see ``RegistryClient.referrers``."""
        pinned = reference.with_digest(digest)
        query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
        target = f"/v2/{reference.repository}/referrers/{digest}{query}"
        found: list[Descriptor] = []

        def keep(page: list[Descriptor]) -> None:
            found.extend(page)
            if len(found) > REFERRERS_MAX:
                raise exceeded(f"more than {REFERRERS_MAX} referrers", "tags_pages")

        ask = Ask("referrers", "GET", target, {"Accept": OCI_INDEX})
        try:
            await self._pages(pinned, ask, keychain, self._referrers_page, keep)
        except RegistryError as error:
            if not _knows_no_referrers(error):
                raise
            found = await self._tagged(pinned, digest, keychain)
        # Registries may leave the filter to their clients.
        return [entry for entry in found if artifact_type in ("", entry.artifact_type)]

    async def _tagged(
        self, reference: Reference, digest: str, keychain: Keychain
    ) -> list[Descriptor]:
        """Return what the tag that stands for the referrers API names; none when there is none."""
        target = f"/v2/{reference.repository}/manifests/{digest.replace(':', '-')}"
        ask = Ask("referrers", "GET", target, {"Accept": OCI_INDEX})
        try:
            found, _ = await self._call(reference, ask, keychain, self._referrers_page)
        except NotFound:
            return []
        return found

    async def _pages(
        self,
        reference: Reference,
        first: Ask,
        keychain: Keychain,
        read: Callable[[Answer], Awaitable[tuple[T, str | None]]],
        keep: Callable[[T], None],
    ) -> None:
        """Read a list to its end.

        Raises:
            LimitExceeded: it has too many pages, or no end.
        """
        seen: set[str] = set()
        target: str | None = first.target
        while target is not None:
            if target in seen or len(seen) >= self._limits.tags_pages:
                what = "in a circle" if target in seen else f"{self._limits.tags_pages} pages long"
                raise exceeded(f"the list of {first.operation} is {what}", "tags_pages").about(
                    reference.source
                )
            seen.add(target)
            ask = Ask(first.operation, "GET", target, first.headers)
            page, target = await self._call(reference, ask, keychain, read)
            try:
                keep(page)
            except RegistryError as error:
                raise error.about(reference.source) from None

    async def _tags_page(self, answer: Answer) -> tuple[list[str], str | None]:
        limit = self._limits.tags_page_bytes
        body = await answer.content(limit, "list of tags", name="tags_page_bytes")
        page = await asyncio.to_thread(load_json, body, "list of tags")
        tags = page.get("tags") if isinstance(page, dict) else page
        if tags is not None and not isinstance(tags, list):
            raise MalformedManifest("the list of tags is no list")
        return [tag for tag in tags or () if isinstance(tag, str)], answer.next_page()

    async def _referrers_page(self, answer: Answer) -> tuple[list[Descriptor], str | None]:
        limit = self._limits.manifest_bytes
        kind = answer.header("Content-Type")
        if kind.partition(";")[0].strip().lower() != OCI_INDEX:
            raise UnsupportedMedia("the list of referrers is no image index")
        raw = await answer.content(limit, "list of referrers", name="manifest_bytes")
        work = partial(
            decode_manifest,
            raw,
            content_type=kind,
            digest=digest_of(raw),
            limits=self._limits,
        )
        found = await asyncio.to_thread(work)
        if not isinstance(found, Index):
            raise RegistryUnavailable("the list of referrers is no image index")
        return list(found.entries), answer.next_page()


def _knows_no_referrers(error: RegistryError) -> bool:
    return error.status in NO_REFERRERS or isinstance(error, UnsupportedMedia)
