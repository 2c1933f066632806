"""Lint: what is wrong with the content of a package, as text, all of it at once.

Validators are what an installed package must fulfil; linters are stricter and block a build.

Source: Crossplane's package linters and validators, with their messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, TypeAlias

from controller.model.content import Entry, ParsedPackage
from controller.model.kinds import META_VERSIONS, group_of, is_meta
from controller.model.manifest import shown
from controller.model.objects import JsonObject
from controller.model.semver import Constraint, Version, is_digest_constraint


class Kinded(NamedTuple):
    """The two words that say what an object is."""

    api_version: str
    kind: str


Check: TypeAlias = Callable[[Kinded], str | None]  # what is wrong, None for nothing


def kinded(obj: JsonObject | Entry) -> Kinded:
    """Return what an object or an entry of a parsed package is."""
    if isinstance(obj, Entry):
        return Kinded(obj.api_version, obj.kind)
    return Kinded(obj.get("apiVersion", ""), obj.get("kind", ""))


def is_package(obj: Kinded, package_kind: str) -> str | None:
    """Return a fault unless an object is the metadata of a package of a kind."""
    if is_meta(*obj) and obj.kind == package_kind:
        return None
    return f"package meta type is not {package_kind}"


def _is(group: str, kind: str, called: str) -> Check:
    def check(obj: Kinded) -> str | None:
        if obj.kind == kind and group_of(obj.api_version) == group:
            return None
        return f"object is not {called}"

    return check


_XP: Final = "apiextensions.crossplane.io"
_OPS: Final = "ops.crossplane.io"
_ADMISSION: Final = "admissionregistration.k8s.io"
_MRAP: Final = "ManagedResourceActivationPolicy"

is_crd = _is("apiextensions.k8s.io", "CustomResourceDefinition", "a CRD")
is_mrd = _is(_XP, "ManagedResourceDefinition", "an MRD")
is_xrd = _is(_XP, "CompositeResourceDefinition", "an XRD")
is_composition = _is(_XP, "Composition", "a Composition")
is_activation_policy = _is(_XP, _MRAP, f"an {_MRAP}")
is_operation = _is(_OPS, "Operation", "an Operation")
is_cron_operation = _is(_OPS, "CronOperation", "a CronOperation")
is_watch_operation = _is(_OPS, "WatchOperation", "a WatchOperation")
is_validating_webhook = _is(
    _ADMISSION, "ValidatingWebhookConfiguration", "an ValidatingWebhookConfiguration"
)
is_mutating_webhook = _is(
    _ADMISSION, "MutatingWebhookConfiguration", "a MutatingWebhookConfiguration"
)

OBJECT_CHECKS: Final[dict[str, tuple[Check, ...]]] = {
    "Provider": (is_crd, is_mrd, is_validating_webhook, is_mutating_webhook),
    "Configuration": (
        is_xrd,
        is_activation_policy,
        is_composition,
        is_operation,
        is_cron_operation,
        is_watch_operation,
    ),
    "Function": (is_crd,),
}


def any_of(obj: Kinded, checks: Iterable[Check]) -> str | None:
    """Return a fault, naming those of all checks, unless an object passes one of them."""
    faults = []
    for check in checks:
        fault = check(obj)
        if fault is None:
            return None
        faults.append(fault)
    if len(faults) == 1:
        return faults[0]
    named = ", ".join(faults)
    return f"object did not pass any of the linters with following errors: {named}"


def lint_object(package_kind: str, obj: Kinded) -> str | None:
    """Return a fault unless an object belongs into a package of a kind."""
    return any_of(obj, OBJECT_CHECKS[package_kind])


def validate(package_kind: str, meta: JsonObject) -> list[str]:
    """Return what forbids to install a package as a kind of package.

    Args:
        package_kind: Provider, Configuration or Function: what it is to be installed as.
        meta: its metadata object.

    Returns:
        Faults; none when it may be installed.

    Source: Crossplane's provider, configuration and function validators.
    """
    faults = []
    wrong_kind = is_package(kinded(meta), package_kind)
    if wrong_kind is not None:
        faults.append(wrong_kind)
    faults += _shape_faults(meta)
    if not faults:
        faults += _version_faults(meta)
    return faults


def lint(package: ParsedPackage) -> list[str]:
    """Return what is doubtful about a package that can be installed.

    Names objects that are not installed from a package of its kind, keys and objects that occur
    twice, and dependencies that no version can ever satisfy.

    Source: Crossplane's provider, configuration and function linters.
    """
    faults = [
        f"{entry.kind} {shown(entry.name)} is not installed from a {package.kind} package: {fault}"
        for entry in package.objects
        if (fault := lint_object(package.kind, kinded(entry))) is not None
    ]
    faults += [str(duplicate) for duplicate in package.duplicates]
    faults += dependency_faults(package.meta)
    return faults


def check_crossplane_version(meta: JsonObject, crossplane_version: str) -> str | None:
    """Return why a package does not fit a version of Crossplane, None when it does.

    Args:
        meta: metadata that ``validate`` accepts.
        crossplane_version: the cluster's, for example ``v2.3.1``; empty for unknown.

    Source: Crossplane's version checker, with its message.
    """
    constraint = _constraint_of(meta)
    if constraint is None:
        return None
    refused = f"package is not compatible with Crossplane version ({crossplane_version})"
    try:
        if Constraint.parse(constraint).matches(Version.parse(crossplane_version)):
            return None
    except ValueError as error:
        return f"{refused}: {error}"
    return f'{refused}: it needs "{shown(constraint)}"'


def dependency_faults(meta: JsonObject) -> list[str]:
    """Return what is wrong with the versions that a package's dependencies state.

    Says nothing about metadata whose fields are not of their types; ``validate`` does.
    """
    if _shape_faults(meta):
        return []
    faults = []
    for dependency in (meta.get("spec") or {}).get("dependsOn") or []:
        version = dependency.get("version")
        if not isinstance(version, str) or is_digest_constraint(version):
            continue
        try:
            Constraint.parse(version)
        except ValueError as error:
            named = shown(str(_source_of(dependency)))
            faults.append(f"dependency {named}: version is poorly formatted: {error}")
    return faults


def _constraint_of(meta: JsonObject) -> str | None:
    crossplane = (meta.get("spec") or {}).get("crossplane")
    version: str | None = crossplane.get("version") if isinstance(crossplane, dict) else None
    return version


def _version_faults(meta: JsonObject) -> list[str]:
    constraint = _constraint_of(meta)
    if constraint is None:
        return []
    try:
        Constraint.parse(constraint)
    except ValueError as error:
        return [f"package version constraints are poorly formatted: {error}"]
    return []


_SOURCES: Final = ("package", *(kind.lower() for kind in META_VERSIONS))


def _source_of(dependency: JsonObject) -> Any:
    return next((dependency[key] for key in _SOURCES if dependency.get(key)), None)


_DEPENDENCY_SHAPE: Final = dict.fromkeys(("apiVersion", "kind", "version", *_SOURCES), str)
_META_SHAPE: Final[JsonObject] = {
    "metadata": {"name": str, "labels": {"*": str}, "annotations": {"*": str}},
    "spec": {
        "crossplane": {"version": str},
        "capabilities": [str],
        "dependsOn": [_DEPENDENCY_SHAPE],
    },
}


def _shape_faults(meta: JsonObject) -> list[str]:
    """Return the fields of a metadata object that do not have the type its schema gives them."""
    faults = _misshapen(meta, _META_SHAPE, "")
    if faults:
        return faults
    for index, dependency in enumerate((meta.get("spec") or {}).get("dependsOn") or []):
        path = f"spec.dependsOn[{index}]"
        if not dependency or not _source_of(dependency):
            faults.append(f"{path} names no package")
        elif not dependency.get("version"):
            faults.append(f"{path}.version is missing")
    return faults


def _misshapen(value: Any, shape: Any, path: str) -> list[str]:
    """Return what in a value is neither absent nor of its shape.

    Args:
        value: a JSON value.
        shape: ``str``; a list with the shape of its items; a dict with the shapes of fields, or of
            all of them under ``*``.
        path: how faults call the value.
    """
    if value is None:
        return []
    if shape is str:
        return [] if isinstance(value, str) else [f"{path} is not text"]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{path} is not a list"]
        items = enumerate(value)
        return [fault for i, v in items for fault in _misshapen(v, shape[0], f"{path}[{i}]")]
    if not isinstance(value, dict):
        return [f"{path} is not an object"]
    shapes = dict.fromkeys(value, shape["*"]) if "*" in shape else shape
    return [
        fault
        for field, inner in shapes.items()
        for fault in _misshapen(value.get(field), inner, f"{path}.{shown(field)}".lstrip("."))
    ]
