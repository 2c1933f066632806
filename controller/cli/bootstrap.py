"""Setting a cluster up, step by step: every step looks first and writes only what is not right.

Source: Crossplane's ``core init``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING

from controller.cli.install import InstallFlags, package_object
from controller.cli.names import duration_text, full_name, installable
from controller.cli.session import CommandError, NotReadyError
from controller.cli.shipped import Desired, is_current, is_established, lost_versions
from controller.cli.view import Readiness
from controller.cli.waiting import poll, together
from controller.kube.client import ApiError, KubeClient
from controller.kube.discovery import Discovery
from controller.model.certificates import Authority, CertificateError, authority_fault
from controller.model.lock import canonical_source, n_and_some_more
from controller.model.objects import (
    FIELD_MANAGER,
    ROOT_CA_SECRET,
    SECRET,
    JsonObject,
    Resource,
    name_of,
)

if TYPE_CHECKING:
    from controller.cli.session import Session

PARALLEL = 4


class Verdict(StrEnum):
    """What a step did with an object."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(slots=True)
class Account:
    """What was done so far; each object is a line on standard output."""

    session: Session
    counts: dict[Verdict, int] = field(default_factory=dict)

    def tell(self, target: str, verdict: Verdict) -> None:
        """Print and count what was done with an object."""
        self.counts[verdict] = self.counts.get(verdict, 0) + 1
        self.session.say(f"{target} {verdict}")

    def summary(self) -> str:
        """Return the counts as one line."""
        return ", ".join(f"{self.counts.get(v, 0)} {v}" for v in Verdict)


async def read_live(client: KubeClient, desired: Sequence[Desired]) -> list[JsonObject | None]:
    """Return the stored objects that belong to some desired ones, None where there is none."""
    limit = asyncio.Semaphore(PARALLEL)

    async def read(one: Desired) -> JsonObject | None:
        async with limit:
            return await find(client, one.resource, one.name, namespace=one.namespace)

    return await together(read(one) for one in desired)


async def find(
    client: KubeClient, resource: Resource, name: str, *, namespace: str | None = None
) -> JsonObject | None:
    """Return a stored object, None when it does not exist."""
    try:
        return await client.get(resource, name, namespace=namespace)
    except ApiError as error:
        if error.not_found:
            return None
        raise


async def apply_all(client: KubeClient, desired: Sequence[Desired], account: Account) -> None:
    """Bring objects to what they are to be, in their order.

    Args:
        client: the cluster.
        desired: stamped objects; definitions must have passed ``refuse_lost_versions``.
        account: where each is told.
    """
    live = await read_live(client, desired)
    for one, present in zip(desired, live, strict=True):
        if present is not None and is_current(present, one):
            account.tell(str(one), Verdict.UNCHANGED)
            continue
        await client.apply(
            one.resource,
            one.name,
            one.body,
            field_manager=FIELD_MANAGER,
            force=True,
            namespace=one.namespace,
        )
        account.tell(str(one), Verdict.CREATED if present is None else Verdict.UPDATED)


async def apply_permissions(
    client: KubeClient, desired: Sequence[Desired], account: Account
) -> None:
    """Bring namespace, service account and roles to what they are to be, in their order.

    One that is there and that this account may not change is left as it is, with a line that says
    so.

    Raises:
        CommandError: one is missing or cannot be read, and this account may not make it.
    """
    for one in desired:
        try:
            await apply_all(client, [one], account)
        except ApiError as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            if (
                error.verb == "get"
                or await find(client, one.resource, one.name, namespace=one.namespace) is None
            ):
                raise CommandError(
                    f"{error}: ask an administrator to run init, or use --skip-rbac where "
                    "namespace, service account and roles are there already"
                ) from error
            account.session.note(f"{one} left as it is: {error}")
            account.tell(str(one), Verdict.UNCHANGED)


async def refuse_lost_versions(client: KubeClient, definitions: Sequence[Desired]) -> None:
    """Check that no definition drops a version in which objects may still be stored.

    Raises:
        CommandError: one would; nothing was written.
    """
    live = await read_live(client, definitions)
    for one, present in zip(definitions, live, strict=True):
        lost = lost_versions(present, one) if present is not None else []
        if lost:
            raise CommandError(
                f"{one} has objects stored in version {', '.join(lost)}, which this crossdock "
                "does not know: nothing was changed; use a crossdock that knows it, or migrate "
                "the objects and take the version out of status.storedVersions first"
            )


async def wait_served(
    client: KubeClient, definitions: Sequence[Desired], *, seconds: float, session: Session
) -> None:
    """Wait until the API server serves what some definitions define.

    Raises:
        NotReadyError: the time is over; the text names what is missing.
    """
    discovery = Discovery(client)

    async def look() -> Readiness:
        live = await read_live(client, definitions)
        missing = [
            one.name
            for one, present in zip(definitions, live, strict=True)
            if present is None or not is_established(present)
        ]
        if not missing:
            await discovery.refresh()
            missing = [one.name for one in definitions if not _is_discovered(discovery, one)]
        if not missing:
            missing = [one.name for one in definitions if not await _answers(client, one)]
        return Readiness(done=not missing, text=f"not served yet: {n_and_some_more(missing)}")

    last = await poll(look, "the API server", seconds=seconds, session=session)
    if not last.done:
        raise NotReadyError(f"after {duration_text(seconds)}: {last.text}")


async def _answers(client: KubeClient, definition: Desired) -> bool:
    """Tell whether objects of a kind can be listed: right after its definition they cannot yet."""
    spec = definition.body["spec"]
    stored = next(version["name"] for version in spec["versions"] if version["storage"])
    names = spec["names"]
    resource = Resource(spec["group"], stored, names["plural"], names["kind"])
    try:
        await client.list_page(resource, limit=1, metadata_only=True)
    except ApiError as error:
        if error.not_found or error.retryable:
            return False
        raise
    return True


def _is_discovered(discovery: Discovery, definition: Desired) -> bool:
    spec = definition.body["spec"]
    return all(
        discovery.served(spec["group"], version["name"], spec["names"]["kind"])
        for version in spec["versions"]
        if version["served"]
    )


async def ensure_present(client: KubeClient, desired: Desired, account: Account) -> None:
    """Create an object where it is missing; one that is there stays as it is."""
    if await find(client, desired.resource, desired.name, namespace=desired.namespace):
        account.tell(str(desired), Verdict.UNCHANGED)
        return
    try:
        await client.create(desired.resource, desired.body, namespace=desired.namespace)
    except ApiError as error:
        if not error.already_exists:
            raise
        account.tell(str(desired), Verdict.UNCHANGED)
    else:
        account.tell(str(desired), Verdict.CREATED)


async def ensure_root_ca(client: KubeClient, namespace: str, account: Account) -> None:
    """Make the root authority of packages' certificates where there is none, or a new one in time.

    Raises:
        CommandError: the namespace does not exist, or the Secret holds something else.
    """
    now = account.session.now()
    present = await find(client, SECRET, ROOT_CA_SECRET, namespace=namespace)
    data: dict[str, str] = {} if present is None else present.get("data") or {}
    target = full_name(SECRET, ROOT_CA_SECRET)
    if any(data.values()):
        try:
            await asyncio.to_thread(Authority.from_secret, data)
        except CertificateError as error:
            raise CommandError(
                f"{target} in {namespace} is no usable authority: {error}; mend it, or delete it "
                "and run init again to get a new one"
            ) from error
        if not await asyncio.to_thread(authority_fault, data, now):
            account.tell(target, Verdict.UNCHANGED)
            return
    made = await asyncio.to_thread(lambda: Authority.create(now).secret_data())
    if present is not None:
        version = {"resourceVersion": present["metadata"]["resourceVersion"]}
        patch = {"metadata": version, "data": made}
        await client.merge_patch(SECRET, ROOT_CA_SECRET, patch, namespace=namespace)
        account.tell(target, Verdict.UPDATED)
        return
    metadata = {"name": ROOT_CA_SECRET, "namespace": namespace}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": made}
    try:
        await ensure_present(client, Desired(SECRET, body), account)
    except ApiError as error:
        if not error.not_found:
            raise
        raise CommandError(
            f"namespace {namespace} does not exist: create it, or run init without --skip-rbac"
        ) from error


async def ensure_package(
    client: KubeClient, resource: Resource, ref: str, account: Account
) -> None:
    """Install a package, or move the one of the same source to the version that is asked for.

    Args:
        client: the cluster.
        resource: the package's kind.
        ref: its image.
        account: where it is told.

    Raises:
        UsageError: the reference is none that can be installed.
    """
    installable(ref)
    wanted = canonical_source(ref)
    present = (await client.list(resource)).get("items") or []
    same = [p for p in present if canonical_source(p["spec"]["package"]) == wanted]
    if not same:
        body = package_object(resource, ref, None, InstallFlags())
        named = [p for p in present if name_of(p) == name_of(body)]
        if not named:
            await ensure_present(client, Desired(resource, body), account)
            return
        same = named
    name = name_of(same[0])
    target = full_name(resource, name)
    if same[0]["spec"]["package"] == ref:
        account.tell(target, Verdict.UNCHANGED)
        return
    await client.merge_patch(resource, name, {"spec": {"package": ref}})
    account.tell(target, Verdict.UPDATED)
