"""Kinds: which objects a package may hold, and which of them are installed.

Source: Crossplane's package parser (its two schemes), linters and revision reconcilers.
"""

from __future__ import annotations

from typing import Final

from controller.model.objects import META_GROUP

_XP: Final = "apiextensions.crossplane.io"
_OPS: Final = "ops.crossplane.io"
_CRD: Final = "apiextensions.k8s.io"
_ADMISSION: Final = "admissionregistration.k8s.io"

META_VERSIONS: Final[dict[str, frozenset[str]]] = {
    "Provider": frozenset({"v1", "v1alpha1"}),
    "Configuration": frozenset({"v1", "v1alpha1"}),
    "Function": frozenset({"v1", "v1beta1"}),
}

OBJECT_KINDS: Final[dict[str, frozenset[str]]] = {
    f"{_XP}/v1": frozenset({"CompositeResourceDefinition", "Composition", "CompositionRevision"}),
    f"{_XP}/v2": frozenset({"CompositeResourceDefinition"}),
    f"{_XP}/v1alpha1": frozenset(
        {"ManagedResourceActivationPolicy", "ManagedResourceDefinition", "Usage"}
    ),
    f"{_OPS}/v1alpha1": frozenset({"CronOperation", "Operation", "WatchOperation"}),
    f"{_CRD}/v1": frozenset({"CustomResourceDefinition"}),
    f"{_CRD}/v1beta1": frozenset({"CustomResourceDefinition"}),
    f"{_ADMISSION}/v1": frozenset(
        {
            "MutatingWebhookConfiguration",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
            "ValidatingWebhookConfiguration",
        }
    ),
}

# Group and kind of what is installed from a package of each kind, of any version.
INSTALLED: Final[dict[str, frozenset[tuple[str, str]]]] = {
    "Provider": frozenset(
        {
            (_CRD, "CustomResourceDefinition"),
            (_XP, "ManagedResourceDefinition"),
            (_ADMISSION, "MutatingWebhookConfiguration"),
            (_ADMISSION, "ValidatingWebhookConfiguration"),
        }
    ),
    "Configuration": frozenset(
        {
            (_XP, "CompositeResourceDefinition"),
            (_XP, "Composition"),
            (_XP, "ManagedResourceActivationPolicy"),
            (_OPS, "CronOperation"),
            (_OPS, "Operation"),
            (_OPS, "WatchOperation"),
        }
    ),
    "Function": frozenset(),
}


def group_of(api_version: str) -> str:
    """Return the group of an ``apiVersion``, empty for the core group."""
    return api_version.partition("/")[0] if "/" in api_version else ""


def is_meta(api_version: str, kind: str) -> bool:
    """Tell whether an object is a package's metadata."""
    group, _, version = api_version.partition("/")
    return group == META_GROUP and version in META_VERSIONS.get(kind, ())


def is_known(api_version: str, kind: str) -> bool:
    """Tell whether a package may hold objects of this kind, or lists of them."""
    known = OBJECT_KINDS.get(api_version, frozenset())
    return kind in known or kind.removesuffix("List") in known


def is_installed(package_kind: str, api_version: str, kind: str) -> bool:
    """Tell whether an object is installed from a package of a kind."""
    return (group_of(api_version), kind) in INSTALLED.get(package_kind, frozenset())
