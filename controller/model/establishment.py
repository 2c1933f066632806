"""What an object of a package must look like in the cluster, and which write it needs.

Guarantees:
    An object whose metadata is right needs no request. An object never gets two controllers: the
    one before is named in the same write with ``controller: false``.

Assumptions:
    ``metadata`` arguments are as the API server's metadata-only watch delivers them.

Source: Crossplane's establisher (owners, webhook enrichment, names of webhook configurations);
Kubernetes' rules of owner references and ``metadata.generation``.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from controller.model.objects import (
    ANNOTATION_APPLIED,
    JsonObject,
    annotations_of,
    controller_of,
    generation_of,
    labels_of,
)

WEBHOOK_KINDS = frozenset({"ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"})
WEBHOOK_PORT = 9443
HASH_LENGTH = 24  # hex characters: 96 bits tell versions of one object apart


class Write(enum.Enum):
    """The request that an object needs."""

    NOTHING = "nothing"
    CREATE = "create"
    CHANGE = "change"  # content differs, or may: a dry run comes first
    ADOPT = "adopt"  # content is right, owners or labels are not
    REFUSE = "refuse"  # another live controller has it


@dataclass(frozen=True, slots=True)
class Owners:
    """The owner references that a revision writes: itself as controller, its package plainly."""

    revision: JsonObject
    package: JsonObject


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where the API server reaches a package's webhooks."""

    service: str
    namespace: str
    ca_bundle: str  # base64 of PEM


class EnrichmentError(ValueError):
    """An object needs the package's TLS certificate, which is not there."""


def package_object(
    obj: JsonObject,
    *,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    webhook: Webhook | None,
    webhook_name: str,
) -> JsonObject:
    """Return an object of a package as it is to be applied, without owners.

    Args:
        obj: the object as the package holds it; it is not changed.
        labels: the revision's ``spec.commonLabels``, added to the object's own.
        annotations: the revision's ``spec.commonAnnotations``, likewise.
        webhook: address of the package's webhooks; None where the package has no runtime.
        webhook_name: the name that a webhook configuration gets.

    Returns:
        A new object without ``status`` and without server-set metadata.

    Raises:
        EnrichmentError: the object calls a webhook and there is none.
    """
    metadata = obj.get("metadata") or {}
    kept: JsonObject = {"name": metadata.get("name", "")}
    merged_labels = {**(metadata.get("labels") or {}), **labels}
    merged_annotations = {**(metadata.get("annotations") or {}), **annotations}
    if merged_labels:
        kept["labels"] = merged_labels
    if merged_annotations:
        kept["annotations"] = merged_annotations
    result = {k: v for k, v in obj.items() if k not in ("metadata", "status")}
    result["metadata"] = kept
    if obj["kind"] in WEBHOOK_KINDS and webhook is not None:
        kept["name"] = webhook_name
        result["webhooks"] = [
            {**hook, "clientConfig": _client_config(hook.get("clientConfig"), webhook)}
            for hook in obj.get("webhooks") or ()
        ]
    elif _converts_by_webhook(obj):
        if webhook is None:
            message = (
                "cannot deploy a CRD with webhook conversion strategy without having a TLS bundle"
            )
            raise EnrichmentError(message)
        result["spec"] = _with_conversion(obj["spec"], webhook)
    return result


def _converts_by_webhook(obj: JsonObject) -> bool:
    if obj["kind"] not in ("CustomResourceDefinition", "ManagedResourceDefinition"):
        return False
    conversion = (obj.get("spec") or {}).get("conversion") or {}
    return bool(conversion.get("strategy") == "Webhook")


def _client_config(present: Any, webhook: Webhook) -> JsonObject:
    config = dict(present or {})
    config.pop("url", None)
    service = dict(config.get("service") or {})
    service |= {"name": webhook.service, "namespace": webhook.namespace, "port": WEBHOOK_PORT}
    return {**config, "caBundle": webhook.ca_bundle, "service": service}


def _with_conversion(spec: JsonObject, webhook: Webhook) -> JsonObject:
    conversion = dict(spec["conversion"])
    hook = dict(conversion.get("webhook") or {})
    hook["clientConfig"] = _client_config(hook.get("clientConfig"), webhook)
    hook.setdefault("conversionReviewVersions", ["v1"])
    return {**spec, "conversion": {**conversion, "webhook": hook}}


def content_hash(obj: JsonObject) -> str:
    """Return a hash of an object that is equal for equal content, whatever the order of keys."""
    packed = orjson.dumps(obj, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(packed).hexdigest()[:HASH_LENGTH]


def owner_references(owners: Owners, metadata: JsonObject | None) -> list[JsonObject]:
    """Return the owner references to apply to an object.

    Args:
        owners: the revision that claims the object, and its package.
        metadata: the object as it is stored; None when it is not.

    Returns:
        The claimant as the only controller, the package, and the controller before as a plain
        owner.
    """
    references = [owners.revision, owners.package]
    before = controller_of(metadata) if metadata is not None else None
    if before is not None and before["uid"] != owners.revision["uid"]:
        references.append({**before, "controller": False, "blockOwnerDeletion": False})
    return references


def with_note(
    obj: JsonObject, *, content: str, generation: int, references: list[JsonObject]
) -> JsonObject:
    """Return the object with its owners and the note of what was applied at which generation."""
    metadata = dict(obj["metadata"])
    annotations = dict(metadata.get("annotations") or {})
    annotations[ANNOTATION_APPLIED] = f"{content}.{generation}"
    metadata |= {"annotations": annotations, "ownerReferences": references}
    return {**obj, "metadata": metadata}


def decide(
    metadata: JsonObject | None,
    *,
    content: str,
    labels: Mapping[str, str],
    owners: Owners,
    may_replace: Callable[[JsonObject], bool],
) -> Write:
    """Return which write brings an object to what the package wants.

    Args:
        metadata: the object's stored metadata; None when it does not exist.
        content: hash of the wanted object.
        labels: the labels that it must carry.
        owners: the owners that it must have.
        may_replace: tells whether a foreign controller reference may be taken over.

    Returns:
        The write; ``Write.NOTHING`` when metadata shows that the object is right.
    """
    if metadata is None:
        return Write.CREATE
    controller = controller_of(metadata)
    if (
        controller is not None
        and controller["uid"] != owners.revision["uid"]
        and not may_replace(controller)
    ):
        return Write.REFUSE
    noted, _, generation = annotations_of(metadata).get(ANNOTATION_APPLIED, "").partition(".")
    if noted != content or generation != str(generation_of(metadata)):
        return Write.CHANGE
    owned = is_owned(metadata, owners)
    labelled = labels.items() <= labels_of(metadata).items()
    return Write.NOTHING if owned and labelled else Write.ADOPT


def is_owned(metadata: JsonObject, owners: Owners) -> bool:
    """Tell whether the revision controls the object and its package is an owner."""
    controller = controller_of(metadata)
    uids = {reference["uid"] for reference in metadata["metadata"].get("ownerReferences") or ()}
    return (
        controller is not None
        and controller["uid"] == owners.revision["uid"]
        and owners.package["uid"] in uids
    )


def is_untouched(
    metadata: JsonObject | None, owners: Owners, labels: Mapping[str, str], added: str
) -> bool:
    """Tell from metadata alone that nobody changed an object since its owner applied it.

    Args:
        metadata: the object's stored metadata; None when it does not exist.
        owners: the owners that it must have.
        labels: the labels that it must carry.
        added: fingerprint of what is added to all objects of the package.
    """
    if metadata is None or not is_owned(metadata, owners):
        return False
    if not labels.items() <= labels_of(metadata).items():
        return False
    noted, _, generation = annotations_of(metadata).get(ANNOTATION_APPLIED, "").partition(".")
    return noted.endswith(f"-{added}") and generation == str(generation_of(metadata))


def reference_sort_key(reference: JsonObject) -> str:
    """Return the text that orders ``status.objectRefs``, descending (Crossplane's order)."""
    return f"{reference['apiVersion']}, Kind={reference['kind']}/{reference['name']}"
