"""Which keys a change of a watched object wakes, and in which queues.

Every function takes the object before and after (None: it did not or does not exist) and yields
pairs of queue name and key. Changes that only our own status writes make wake nobody, but for what
others read from them.

Source: Crossplane's watches and cross-enqueue rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from controller.model.objects import (
    ANNOTATION_PAUSED,
    LABEL_PACKAGE,
    LOCK_KEY,
    REVISIONS,
    JsonObject,
    Key,
    annotations_of,
    controller_of,
    generation_of,
    is_deleting,
    key_of,
    labels_of,
    package_kind,
)

Wake = tuple[str, Key]


def _differs(old: JsonObject | None, new: JsonObject | None) -> bool:
    """Tell whether more than the status changed."""
    if old is None or new is None:
        return True
    return _facts(old) != _facts(new)


def _facts(obj: JsonObject) -> tuple[Any, ...]:
    metadata = obj["metadata"]
    return (
        metadata.get("uid"),
        generation_of(obj),
        is_deleting(obj),
        annotations_of(obj).get(ANNOTATION_PAUSED),
        metadata.get("finalizers"),
        metadata.get("ownerReferences"),
    )


def _status(obj: JsonObject | None, kind: str) -> tuple[Any, Any]:
    """Return status and message of one condition as it is stored."""
    for entry in ((obj or {}).get("status") or {}).get("conditions") or ():
        if entry["type"] == kind:
            return entry["status"], entry.get("message")
    return None, None


def on_package(old: JsonObject | None, new: JsonObject | None) -> Iterator[Wake]:
    """Wake the package for its spec and its digest, dependants for its coming and going."""
    obj = new or old
    if obj is None:
        return
    resolved = new is not None and old is not None
    if _differs(old, new) or (resolved and _answer(old) != _answer(new)):
        yield "package", key_of(obj)
    if old is None or new is None or old["spec"]["package"] != new["spec"]["package"]:
        yield "resolve", LOCK_KEY


def _answer(obj: JsonObject | None) -> tuple[Any, ...]:
    """Return what the digest stage has said about a package."""
    status = (obj or {}).get("status") or {}
    return status.get("currentIdentifier"), *_status(obj, "Resolved")


def on_revision(old: JsonObject | None, new: JsonObject | None) -> Iterator[Wake]:
    """Wake the revision for its spec, its package for its status, the Lock when it comes, goes."""
    obj = new or old
    if obj is None:
        return
    key = key_of(obj)
    if new is not None and is_deleting(new):
        yield "evict", key
    elif new is not None and _differs(old, new):
        yield "image", key
        if new["spec"].get("desiredState") != "Active":
            yield "establish", key  # what it controls is let go, whatever its content is
    name = labels_of(obj).get(LABEL_PACKAGE)
    if name is not None and (_differs(old, new) or _conditions(old) != _conditions(new)):
        yield "package", Key(package_kind(key.kind), name)
    if old is None or new is None or _differs(old, new):
        yield "resolve", LOCK_KEY


def _conditions(obj: JsonObject | None) -> Any:
    return ((obj or {}).get("status") or {}).get("conditions")


def on_lock(old: JsonObject | None, new: JsonObject | None) -> Iterator[Wake]:
    """Wake the resolver when the Lock's packages changed."""
    if old is None or new is None or old.get("packages") != new.get("packages"):
        yield "resolve", LOCK_KEY


def on_image_config(
    old: JsonObject | None,
    new: JsonObject | None,
    packages: Iterable[JsonObject],
    revisions: Iterable[JsonObject],
) -> Iterator[Wake]:
    """Wake all packages and revisions: which images match depends on other ImageConfigs too."""
    if not _differs(old, new):
        return
    for package in packages:
        yield "package", key_of(package)
        yield "digest", key_of(package)
    for revision in revisions:
        yield "image", key_of(revision)
    yield "resolve", LOCK_KEY


def on_runtime_config(
    old: JsonObject | None, new: JsonObject | None, revisions: Iterable[JsonObject]
) -> Iterator[Wake]:
    """Wake the revisions that a DeploymentRuntimeConfig shapes."""
    obj = new or old
    if obj is None or not _differs(old, new):
        return
    name = obj["metadata"]["name"]
    for revision in revisions:
        reference = revision["spec"].get("runtimeConfigRef") or {}
        applied = (revision.get("status") or {}).get("appliedImageConfigRefs") or ()
        prescribed = any(entry["reason"] == "ConfigureRuntime" for entry in applied)
        if prescribed or reference.get("name") == name:
            yield "prepare", key_of(revision)


def on_owned(queue: str, old: JsonObject | None, new: JsonObject | None) -> Iterator[Wake]:
    """Wake the revision that controls an object."""
    for obj in (old, new):
        owner = controller_of(obj) if obj is not None else None
        if owner is not None and owner["kind"] in REVISIONS:
            yield queue, Key(owner["kind"], owner["name"])


def on_established(old: JsonObject | None, new: JsonObject | None) -> Iterator[Wake]:
    """Wake the revision of an object of a package that somebody changed or removed."""
    if old is None:
        return
    if new is not None and _claims(old) == _claims(new):
        return
    yield from on_owned("establish", old, new)


def _claims(obj: JsonObject) -> tuple[Any, ...]:
    metadata = obj["metadata"]
    return (
        generation_of(obj),
        metadata.get("labels"),
        metadata.get("annotations"),
        metadata.get("ownerReferences"),
        is_deleting(obj),
    )
