"""ImageConfigs: which one applies to an image, and what it changes.

An ImageConfig applies to the images that start with one of its prefixes, as plain text; for each
purpose the longest prefix of all ImageConfigs that serve the purpose wins.

Source: Crossplane's ImageConfig v1beta1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from controller.model.objects import JsonObject, name_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class Purpose(StrEnum):
    """What an ImageConfig does to an image: the reason in ``status.appliedImageConfigRefs``."""

    REWRITE = "RewriteImage"
    PULL_SECRET = "SetImagePullSecret"  # noqa: S105 - a reason, not a secret
    VERIFY = "VerifyImage"
    RUNTIME = "ConfigureRuntime"


IMAGE_PURPOSES = frozenset({Purpose.REWRITE, Purpose.PULL_SECRET, Purpose.VERIFY})


class ImageConfigError(ValueError):
    """The ImageConfig that applies to an image cannot be used; names it and the field to set."""


@dataclass(frozen=True, slots=True)
class Match:
    """The ImageConfig that applies to an image, and the longest of its prefixes that fits."""

    name: str
    prefix: str
    spec: JsonObject

    def applied(self, purpose: Purpose) -> JsonObject:
        """Return the entry of ``status.appliedImageConfigRefs`` that records the use."""
        return {"name": self.name, "reason": purpose.value}


@dataclass(frozen=True, slots=True)
class Located:
    """Where an image is really fetched from, and what fetching it takes.

    ``verification`` is the name of the ImageConfig that asks for signatures, None when none does.
    ``applied`` are entries of ``status.appliedImageConfigRefs``, in the order of their use.
    """

    image: str
    pull_secret: str | None
    verification: str | None
    applied: tuple[JsonObject, ...]


def pull_secret_of(spec: JsonObject) -> str:
    """Return the pull secret that an ImageConfig's spec names, empty when it names none."""
    name: str = _part(spec, "registry", "authentication", "pullSecretRef").get("name") or ""
    return name


def best_match(configs: Iterable[JsonObject], purpose: Purpose, image: str) -> Match | None:
    """Return the ImageConfig that applies to an image for a purpose.

    Args:
        configs: stored ImageConfigs, in any order.
        purpose: only ImageConfigs that serve it are considered.
        image: an image reference as text, or a repository without tag.

    Returns:
        The one with the longest prefix of the image; of equally long ones that whose name sorts
        first. None when no prefix fits; an empty prefix fits nothing.

    Source: Crossplane's ImageConfig selection.
    """
    candidates = [
        Match(name_of(config), prefix, config["spec"])
        for config in configs
        if _serves(config["spec"], purpose)
        for prefix in _prefixes(config["spec"])
        if image.startswith(prefix)
    ]
    return min(candidates, key=lambda match: (-len(match.prefix), match.name), default=None)


def rewrite(configs: Iterable[JsonObject], image: str) -> tuple[str, Match | None]:
    """Return the image that an image is to be fetched from.

    Args:
        configs: stored ImageConfigs.
        image: an image reference as text, or a repository without tag.

    Returns:
        The image with its prefix replaced once, and the ImageConfig that asked for it; the image
        unchanged and None where none does.

    Raises:
        ImageConfigError: the ImageConfig that applies names no new prefix.
    """
    match = best_match(configs, Purpose.REWRITE, image)
    if match is None:
        return image, None
    prefix = match.spec["rewriteImage"].get("prefix")
    if not prefix:
        raise ImageConfigError(
            "cannot get image rewrite config: rewrite prefix is missing: "
            f'set spec.rewriteImage.prefix of ImageConfig "{match.name}"'
        )
    return prefix + image.removeprefix(match.prefix), match


def locate(configs: Collection[JsonObject], image: str) -> Located:
    """Return where an image is fetched from, with what secret, and whether signatures count.

    Args:
        configs: stored ImageConfigs.
        image: an image reference as the user wrote it, or a repository without tag.

    Returns:
        The rewritten image; pull secret and verification follow from that, not from the original.

    Raises:
        ImageConfigError: an ImageConfig that applies is incomplete.

    Source: Crossplane's package client.
    """
    fetched, rewritten = rewrite(configs, image)
    secret = best_match(configs, Purpose.PULL_SECRET, fetched)
    verification = best_match(configs, Purpose.VERIFY, fetched)
    if verification is not None and not verification.spec["verification"].get("cosign"):
        raise ImageConfigError(
            "cannot get image verification config: cosign verification config is missing: "
            f'set spec.verification.cosign of ImageConfig "{verification.name}"'
        )
    used = (
        (rewritten, Purpose.REWRITE),
        (secret, Purpose.PULL_SECRET),
        (verification, Purpose.VERIFY),
    )
    return Located(
        image=fetched,
        pull_secret=None if secret is None else pull_secret_of(secret.spec),
        verification=None if verification is None else verification.name,
        applied=tuple(match.applied(purpose) for match, purpose in used if match is not None),
    )


def runtime_config(configs: Iterable[JsonObject], image: str) -> tuple[JsonObject, Match] | None:
    """Return the runtime configuration that an ImageConfig prescribes for an image.

    Args:
        configs: stored ImageConfigs.
        image: the rewritten image, ``status.resolvedImage`` of a revision.

    Returns:
        The reference (``apiVersion``, ``kind``, ``name``) that replaces the revision's own, and the
        ImageConfig it stands in; None when the revision keeps its own.
    """
    match = best_match(configs, Purpose.RUNTIME, image)
    reference = _part(match.spec, "runtime", "configRef") if match is not None else {}
    if match is None or not reference.get("name"):
        return None
    return reference, match


def applied_refs(
    present: Iterable[JsonObject], used: Iterable[JsonObject], *, owned: Collection[Purpose]
) -> list[JsonObject]:
    """Return ``status.appliedImageConfigRefs`` after one stage spoke.

    Args:
        present: the entries as they are.
        used: the entries that the stage states.
        owned: the purposes that the stage speaks for; what it does not state of them goes.

    Returns:
        Entries of other purposes first, then the stated ones; at most one entry per reason.
    """
    stated = {entry["reason"]: entry for entry in used}
    reasons = {purpose.value for purpose in owned} | stated.keys()
    kept = {entry["reason"]: entry for entry in present if entry["reason"] not in reasons}
    return [*kept.values(), *stated.values()]


def _serves(spec: JsonObject, purpose: Purpose) -> bool:
    if purpose is Purpose.PULL_SECRET:
        return bool(pull_secret_of(spec))
    field = {
        Purpose.REWRITE: "rewriteImage",
        Purpose.VERIFY: "verification",
        Purpose.RUNTIME: "runtime",
    }[purpose]
    return spec.get(field) is not None


def _prefixes(spec: JsonObject) -> list[str]:
    matches: list[JsonObject] = spec.get("matchImages") or []
    return [match["prefix"] for match in matches if match.get("prefix")]


def _part(spec: JsonObject, *path: str) -> JsonObject:
    """Return a nested object, empty where any part of the path is missing."""
    found: Any = spec
    for name in path:
        found = found.get(name) or {}
    nested: JsonObject = found
    return nested
