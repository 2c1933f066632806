"""The Lock as values: sources, dependencies and entries, read from metadata and from the Lock.

Sources are compared by ``canonical_source``. Reading never fails on what a Lock holds: a field that
is missing is empty, and the graph tells what is wrong with it.

Source: Crossplane's Lock v1beta1 and the ``dependsOn`` of its package metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from controller.model.objects import JsonObject

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LEGACY_KINDS: Final = ("Configuration", "Provider", "Function")  # first match wins
_HUB: Final = "index.docker.io"
_HUB_ALIASES: Final = frozenset({"docker.io", "registry-1.docker.io", _HUB})
_NAMED: Final = 3
_SOURCES_REMEMBERED: Final = 8192

INVALID_DEPENDENCY: Final = (
    "encountered an invalid dependency: package dependencies must specify either a valid type, "
    "or an explicit apiVersion, kind, and package"
)


class DependencyError(ValueError):
    """A dependency cannot be understood or cannot be satisfied."""


def without_identifier(reference: str) -> str:
    """Return an image reference as written, without its tag and digest."""
    repository = reference.partition("@")[0]
    while True:
        head, colon, tail = repository.rpartition(":")
        if not colon or "/" in tail:
            return repository
        repository = head


@lru_cache(maxsize=_SOURCES_REMEMBERED)
def canonical_source(reference: str) -> str:
    """Return ``<registry>/<repository>``, equal for all spellings of one repository.

    Only the registry host is canonicalised, by the rules of image references; the text is not
    checked, so that a wrong source in the Lock stays a node of its own.

    Args:
        reference: an image reference or a source; tag and digest are dropped.

    Returns:
        The comparison key: Docker Hub is ``index.docker.io``, hosts are in lower case.
    """
    host, path = split_source(without_identifier(reference))
    lower = host.lower()
    if not host:
        host = _HUB
    elif split_source(f"{lower}/")[0]:
        host = lower  # else its capitals are what makes it a host
    if host in _HUB_ALIASES:
        return f"{_HUB}/{path}" if "/" in path else f"{_HUB}/library/{path}"
    return f"{host}/{path}"


def split_source(source: str) -> tuple[str, str]:
    """Return the registry host of a source, empty when it names none, and the repository."""
    first, slash, rest = source.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first or first != first.lower()):
        return first, rest
    return "", source


def n_and_some_more(items: Iterable[str], limit: int = _NAMED) -> str:
    """Return sorted texts as a list for a message; beyond the limit only their number.

    Source: Crossplane's wording: ``a, b``, ``a, b, and c``, ``a, b, c, and N more``.
    """
    named = sorted(items)
    if len(named) > limit:
        return f"{', '.join(named[:limit])}, and {len(named) - limit} more"
    if len(named) == limit and limit > 1:
        return f"{', '.join(named[:-1])}, and {named[-1]}"
    return ", ".join(named)


@dataclass(frozen=True, slots=True)
class Dependency:
    """What a package needs: a source, a version constraint or digest, and the package's kind.

    ``api_version`` is None for the legacy form that names only a kind.
    """

    package: str
    constraint: str
    kind: str | None = None
    api_version: str | None = None

    @classmethod
    def from_metadata(cls, entry: Any, *, where: str = "spec.dependsOn") -> Dependency:
        """Return a dependency as a package's metadata states it.

        Args:
            entry: an entry of ``spec.dependsOn``, with apiVersion, kind and package, or with
                ``configuration``, ``provider`` or ``function``.
            where: the path of the entry, for the message.

        Raises:
            DependencyError: the entry has neither form.
        """
        if isinstance(entry, dict):
            named = _texts(entry, "package", "kind", "apiVersion")
            constraint = _text(entry, "version")
            if all(named):
                return cls(named[0], constraint, named[1], named[2])
            for kind in _LEGACY_KINDS:
                if source := _text(entry, kind.lower()):
                    return cls(source, constraint, kind)
        raise DependencyError(f"{INVALID_DEPENDENCY} ({where})")

    @classmethod
    def from_json(cls, entry: JsonObject) -> Dependency:
        """Return a dependency as the Lock has it; missing fields are empty."""
        api_version, kind = _text(entry, "apiVersion"), _text(entry, "kind")
        return cls(
            _text(entry, "package"),
            _text(entry, "constraints"),
            kind or _text(entry, "type") or None,
            api_version if kind and api_version else None,
        )

    def to_json(self) -> JsonObject:
        """Return the dependency as the Lock has it."""
        return {
            "package": self.package,
            "constraints": self.constraint,
            **_type_json(self.api_version, self.kind),
        }

    @property
    def key(self) -> str:
        """The canonical source."""
        return canonical_source(self.package)

    def __str__(self) -> str:
        return f'"{self.package}" ({self.constraint})' if self.constraint else f'"{self.package}"'


def dependencies_of(metadata: JsonObject) -> tuple[Dependency, ...]:
    """Return what a package's metadata depends on.

    Args:
        metadata: the object of ``meta.pkg.crossplane.io``.

    Raises:
        DependencyError: an entry is invalid; the message names its index.
    """
    spec = metadata.get("spec")
    entries = (spec.get("dependsOn") if isinstance(spec, dict) else None) or []
    if not isinstance(entries, list):
        raise DependencyError(f"{INVALID_DEPENDENCY} (spec.dependsOn is not a list)")
    return tuple(
        Dependency.from_metadata(entry, where=f"spec.dependsOn[{index}]")
        for index, entry in enumerate(entries)
    )


@dataclass(frozen=True, slots=True)
class LockEntry:
    """One installed package: named by its revision, with what it depends on.

    ``version`` is a tag or a digest. ``api_version`` is None for the legacy form.
    """

    name: str
    source: str
    version: str
    dependencies: tuple[Dependency, ...] = ()
    kind: str | None = None
    api_version: str | None = None

    @classmethod
    def from_json(cls, entry: JsonObject) -> LockEntry:
        """Return an entry of the Lock's ``packages``; missing fields are empty."""
        api_version, kind = _text(entry, "apiVersion"), _text(entry, "kind")
        return cls(
            name=_text(entry, "name"),
            source=_text(entry, "source"),
            version=_text(entry, "version"),
            dependencies=tuple(
                Dependency.from_json(dependency) for dependency in entry.get("dependencies") or ()
            ),
            kind=kind or _text(entry, "type") or None,
            api_version=api_version if kind and api_version else None,
        )

    def to_json(self) -> JsonObject:
        """Return the entry as the Lock has it."""
        return {
            "name": self.name,
            **_type_json(self.api_version, self.kind),
            "source": self.source,
            "version": self.version,
            "dependencies": [dependency.to_json() for dependency in self.dependencies],
        }

    @property
    def key(self) -> str:
        """The canonical source."""
        return canonical_source(self.source)


def kind_of(entry: Mapping[str, Any]) -> str:
    """Return the package kind that an entry of the Lock names, in either form."""
    return _text(entry, "kind") or _text(entry, "type")


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    return value if isinstance(value, str) else ""


def _texts(entry: Mapping[str, Any], *names: str) -> list[str]:
    return [_text(entry, name) for name in names]


def _type_json(api_version: str | None, kind: str | None) -> JsonObject:
    if api_version and kind:
        return {"apiVersion": api_version, "kind": kind}
    return {"type": kind} if kind else {}
