"""``uninstall``: delete a package, having said what goes with it and what stays."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from controller.cli.dependencies import Snapshot
from controller.cli.flags import Context, Given, Kubeconfig
from controller.cli.list import read_all
from controller.cli.names import KIND_WORDS, duration, duration_text, full_name
from controller.cli.render import counted
from controller.cli.session import DONE, NotReadyError, UsageError
from controller.cli.trace import missing, split_target
from controller.cli.view import Readiness
from controller.cli.waiting import poll
from controller.model.objects import (
    LABEL_PACKAGE,
    LOCK,
    REVISIONS,
    JsonObject,
    Resource,
    labels_of,
    name_of,
    package_kind,
    uid_of,
)

if TYPE_CHECKING:
    from controller.cli.session import Session
    from controller.kube.client import KubeClient


async def uninstall(
    kind: Annotated[str, Parameter(name="KIND")],
    name: Annotated[str | None, Parameter(name="NAME")] = None,
    /,
    *,
    cascade: Annotated[
        Literal["background", "foreground"], Parameter(metavar="background|foreground")
    ] = "background",
    wait: Annotated[str, Parameter(alias="-w", metavar="DURATION")] = "0s",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    session: Given,
) -> int:
    """Uninstall a package: delete its object; its revisions and what they installed follow.

    Args:
        kind: "configuration", "function" or "provider"; KIND/NAME in one word is taken too.
        name: the package.
        cascade: whether the package's object goes at once and the rest after it (background), or
            last of all (foreground).
        wait: how long to wait until the package and its revisions are gone, for example 5m.
        kubeconfig: the file that says how to reach the cluster.
        context: its context.
        session: the world outside.

    Returns:
        The exit code.
    """
    resource, name = split_target(kind, name)
    if name is None:
        raise UsageError('expected "NAME"')
    seconds = duration(wait)
    target = full_name(resource, name)
    async with session.cluster(kubeconfig, context) as client:
        found = await read_all(client, [*KIND_WORDS.values(), *REVISIONS.values(), LOCK])
        snapshot = Snapshot.of(found)
        package = snapshot.by_identity.get((resource.kind, name))
        if package is None:
            raise missing(resource, name, session)
        for line in consequences(package, snapshot):
            session.note(line)
        await client.delete(resource, name, uid=uid_of(package), propagation=cascade.capitalize())
        session.say(f"{target} deleted")
        if seconds > 0:
            await wait_until_gone(client, resource, package, seconds=seconds, session=session)
    return DONE


def revisions_of(package: JsonObject, snapshot: Snapshot) -> list[JsonObject]:
    """Return the revisions of a package."""
    return [
        revision
        for revision in snapshot.revisions
        if package_kind(revision["kind"]) == package["kind"]
        and labels_of(revision).get(LABEL_PACKAGE) == name_of(package)
    ]


def consequences(package: JsonObject, snapshot: Snapshot) -> list[str]:
    """Return the lines that say what a deletion takes along, what needs it and what stays."""
    revisions = revisions_of(package, snapshot)
    objects = {
        (reference["kind"], reference["name"])
        for revision in revisions
        for reference in (revision.get("status") or {}).get("objectRefs") or ()
    }
    by_kind = Counter(kind for kind, _ in objects)
    going = [counted(len(revisions), "revision")]
    going += [counted(count, kind) for kind, count in sorted(by_kind.items())]
    lines = ["goes: " + ", ".join(going)]
    if by_kind["CustomResourceDefinition"] or by_kind["ManagedResourceDefinition"]:
        lines.append("goes: every object of the kinds that these definitions define")
    needing = [
        f"{other['kind']}/{name_of(other)}"
        for other in snapshot.packages
        if other is not package and _needs(other, package, snapshot)
    ]
    if needing:
        lines.append(f"still needed by {', '.join(needing)}: it may be installed again for them")
    staying = [
        f"{node.kind}/{node.name}"
        for node in map(snapshot.find, snapshot.dependencies_of(package))
        if node.object is not None
    ]
    if staying:
        lines.append(f"stays: {', '.join(staying)}, which it depends on")
    return lines


def _needs(other: JsonObject, package: JsonObject, snapshot: Snapshot) -> bool:
    """Tell whether a package's dependencies name another package."""
    return any(
        snapshot.find(dependency).object is package
        for dependency in snapshot.dependencies_of(other)
    )


async def wait_until_gone(
    client: "KubeClient",
    resource: Resource,
    package: JsonObject,
    *,
    seconds: float,
    session: "Session",
) -> None:
    """Wait until a package and its revisions no longer exist.

    Raises:
        NotReadyError: the time is over; the text names what is left.
    """
    name = name_of(package)
    target = full_name(resource, name)
    revision_kind = REVISIONS[f"{resource.kind}Revision"]

    async def look() -> Readiness:
        found = await read_all(client, [resource, revision_kind])
        package_left = [o for o in found if uid_of(o) == uid_of(package)]
        left = package_left + [o for o in found if labels_of(o).get(LABEL_PACKAGE) == name]
        names = ", ".join(f"{o['kind']}/{name_of(o)}" for o in left)
        return Readiness(done=not left, text=f"{names} still there")

    last = await poll(look, f"the end of {target}", seconds=seconds, session=session)
    if not last.done:
        raise NotReadyError(f"{target} is not gone within {duration_text(seconds)}: {last.text}")
    session.say(f"{target} gone")
