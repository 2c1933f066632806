"""Semantic versions and version constraints, as package tags and dependencies carry them.

Source: Semantic Versioning 2.0.0 for precedence; the loose version syntax and the constraint
grammar of Masterminds/semver v3, which Crossplane uses for tags, dependencies and its own version.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property, total_ordering
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

VERSION_LENGTH_MAX: Final = 256
CONSTRAINT_LENGTH_MAX: Final = 512
CONSTRAINT_GROUPS_MAX: Final = 32
_NUMBER_MAX: Final = 2**64 - 1

_SPACES: Final = "\t\n\f\r "
_SPACE: Final = f"[{_SPACES}]"
_IDENTIFIERS: Final = r"[0-9A-Za-z\-]+(?:\.[0-9A-Za-z\-]+)*"
_VERSION: Final = re.compile(
    rf"v?([0-9]+)(?:\.([0-9]+))?(?:\.([0-9]+))?(?:-({_IDENTIFIERS}))?(?:\+({_IDENTIFIERS}))?"
)
# Masterminds' character class for a part of a constraint also holds the bar.
_PART: Final = r"[0-9|xX*]+"
_OPERAND: Final = rf"v?{_PART}(?:\.{_PART})?(?:\.{_PART})?(?:-{_IDENTIFIERS})?(?:\+{_IDENTIFIERS})?"
_HYPHEN_RANGE: Final = re.compile(rf"{_SPACE}*({_OPERAND}){_SPACE}+-{_SPACE}+({_OPERAND}){_SPACE}*")
_COMPARATOR: Final = re.compile(
    rf"(!=|>=|=>|<=|=<|~>|=|>|<|~|\^|){_SPACE}*"
    rf"v?({_PART})(?:\.({_PART}))?(?:\.({_PART}))?(-{_IDENTIFIERS})?(?:\+{_IDENTIFIERS})?"
)
_SEPARATOR: Final = re.compile(rf"{_SPACE}*,{_SPACE}*|{_SPACE}+")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_WILDCARDS: Final = frozenset({None, "x", "X", "*"})

_PrereleaseKey: TypeAlias = tuple[int, tuple[tuple[int, int, str], ...]]


class VersionError(ValueError):
    """The text is not a semantic version."""


class ConstraintError(ValueError):
    """The text is not a version constraint."""


@total_ordering
@dataclass(frozen=True, eq=False)
class Version:
    """A semantic version; compared by precedence, so build metadata and spelling do not count."""

    major: int
    minor: int
    patch: int
    prerelease: str
    build: str
    original: str

    @classmethod
    def parse(cls, text: str) -> Version:
        """Return the version that a text names, read loosely.

        Args:
            text: a version; a leading ``v``, missing minor and patch numbers and leading zeros of
                the three numbers are accepted.

        Returns:
            The version; missing numbers are 0.

        Raises:
            VersionError: the text is no version, a number exceeds 64 bits, or the text exceeds
                256 characters.

        Source: Masterminds/semver v3, NewVersion.
        """
        if len(text) > VERSION_LENGTH_MAX:
            raise VersionError(
                f"invalid semantic version: longer than {VERSION_LENGTH_MAX} characters"
            )
        found = _VERSION.fullmatch(text)
        if found is None:
            raise VersionError(
                f"invalid semantic version: {_quoted(text)}; expected for example v1.2.3"
            )
        numbers = [int(number or 0) for number in found.group(1, 2, 3)]
        if max(numbers) > _NUMBER_MAX:
            raise VersionError(f"invalid semantic version: {_quoted(text)}: number too large")
        prerelease = found[4] or ""
        for part in prerelease.split("."):
            if part.isdigit() and len(part) > 1 and part[0] == "0":
                raise VersionError(
                    f"invalid semantic version: {_quoted(text)}: prerelease number starts with 0"
                )
        return cls(numbers[0], numbers[1], numbers[2], prerelease, found[5] or "", text)

    @property
    def is_complete(self) -> bool:
        """Whether the original text spells the full version, give or take a leading ``v``."""
        return str(self) == self.original.removeprefix("v")

    @cached_property
    def precedence(self) -> tuple[int, int, int, _PrereleaseKey]:
        """The key that orders versions (Semantic Versioning 2.0.0, section 11)."""
        return self.major, self.minor, self.patch, _prerelease_key(self.prerelease)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Version):
            return NotImplemented
        return self.precedence == other.precedence

    def __lt__(self, other: Version) -> bool:
        return self.precedence < other.precedence

    def __hash__(self) -> int:
        return hash(self.precedence)

    def __str__(self) -> str:
        prerelease = f"-{self.prerelease}" if self.prerelease else ""
        build = f"+{self.build}" if self.build else ""
        return f"{self.major}.{self.minor}.{self.patch}{prerelease}{build}"


def _prerelease_key(prerelease: str) -> _PrereleaseKey:
    if not prerelease:
        return 1, ()
    return 0, tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in prerelease.split(".")
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class _Comparator:
    """One operator with its operand; ``given`` counts the numbers before the first wildcard."""

    operator: str
    operand: Version
    given: int

    @property
    def dirty(self) -> bool:
        return self.given < 3

    def matches(self, version: Version) -> bool:
        return _OPERATORS[self.operator](version, self)


def _equal(version: Version, wanted: _Comparator) -> bool:
    return _tilde(version, wanted) if wanted.dirty else version == wanted.operand


def _not_equal(version: Version, wanted: _Comparator) -> bool:
    operand = wanted.operand
    if wanted.given == 1:
        return version.major != operand.major
    if wanted.given == 2:
        if (version.major, version.minor) != (operand.major, operand.minor):
            return True
        return _prerelease_key(version.prerelease) != _prerelease_key(operand.prerelease)
    return version != operand


def _greater(version: Version, wanted: _Comparator) -> bool:
    operand = wanted.operand
    if wanted.given == 1:
        return version.major > operand.major
    if wanted.given == 2:
        return (version.major, version.minor) > (operand.major, operand.minor)
    return version > operand


def _less(version: Version, wanted: _Comparator) -> bool:
    return version < wanted.operand


def _at_least(version: Version, wanted: _Comparator) -> bool:
    return version >= wanted.operand


def _at_most(version: Version, wanted: _Comparator) -> bool:
    operand = wanted.operand
    if not wanted.dirty:
        return version <= operand
    if wanted.given == 1:
        return version.major <= operand.major
    return (version.major, version.minor) <= (operand.major, operand.minor)


def _tilde(version: Version, wanted: _Comparator) -> bool:
    operand = wanted.operand
    if version < operand:
        return False
    if wanted.given in (0, 3) and operand.major == operand.minor == operand.patch == 0:
        return True  # the reference reads ~0.0.0 as "any version"
    if version.major != operand.major:
        return False
    return wanted.given == 1 or version.minor == operand.minor


def _caret(version: Version, wanted: _Comparator) -> bool:
    operand = wanted.operand
    if version < operand or version.major != operand.major:
        return False
    if operand.major > 0 or wanted.given == 1:
        return True
    if version.minor != operand.minor:
        return False
    return operand.minor > 0 or wanted.given == 2 or version.patch == operand.patch


_OPERATORS: Final[dict[str, Callable[[Version, _Comparator], bool]]] = {
    "": _equal,
    "=": _equal,
    "!=": _not_equal,
    ">": _greater,
    "<": _less,
    ">=": _at_least,
    "=>": _at_least,
    "<=": _at_most,
    "=<": _at_most,
    "~": _tilde,
    "~>": _tilde,
    "^": _caret,
}


@dataclass(frozen=True)
class Constraint:
    """A set of versions: alternatives (``||``) of groups of comparators that must all hold."""

    original: str
    _groups: tuple[tuple[_Comparator, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Return the constraint that a text states.

        Args:
            text: comparators (``= != > < >= <= ~ ^``, none for equal) with full or partial
                versions, ``x`` and ``*`` as wildcards, joined by spaces or commas (all must hold)
                and ``||`` (one must hold); ``1.2 - 1.4.5`` is a range.

        Returns:
            The constraint.

        Raises:
            ConstraintError: the text does not follow the grammar (an empty text does not), exceeds
                512 characters or has more than 32 alternatives.

        Source: Masterminds/semver v3, NewConstraint.
        """
        if len(text) > CONSTRAINT_LENGTH_MAX:
            raise ConstraintError(
                f"improper constraint: longer than {CONSTRAINT_LENGTH_MAX} characters"
            )
        groups = _HYPHEN_RANGE.sub(r">= \1, <= \2 ", text).split("||")
        if len(groups) > CONSTRAINT_GROUPS_MAX:
            raise ConstraintError(
                f"improper constraint: more than {CONSTRAINT_GROUPS_MAX} alternatives"
            )
        return cls(text, tuple(_group(group) for group in groups))

    def matches(self, version: Version) -> bool:
        """Tell whether a version is in the set.

        A prerelease is only in it through a group that names a prerelease itself.
        """
        return any(_group_matches(group, version) for group in self._groups)

    def __str__(self) -> str:
        return self.original


def _group(text: str) -> tuple[_Comparator, ...]:
    """Return the comparators of one alternative; ConstraintError where it breaks the grammar."""
    words = text.strip(_SPACES)
    comparators = []
    position = 0
    while True:
        found = _COMPARATOR.match(words, position)
        if found is None:
            break
        comparators.append(_comparator(found, text))
        if found.end() == len(words):
            return tuple(comparators)
        separator = _SEPARATOR.match(words, found.end())
        if separator is None:
            break
        position = separator.end()
    raise ConstraintError(f"improper constraint: {_quoted(text)}")


def _comparator(found: re.Match[str], text: str) -> _Comparator:
    operator, *parts, prerelease = found.groups()
    given = next((i for i, part in enumerate(parts) if part in _WILDCARDS), 3)
    numbers = [*parts[:given], "0", "0", "0"][:3]
    try:
        operand = Version.parse(".".join(numbers) + (prerelease or ""))
    except VersionError as error:
        raise ConstraintError(f"improper constraint: {_quoted(text)}: {error}") from error
    return _Comparator(operator, operand, given)


def _group_matches(group: tuple[_Comparator, ...], version: Version) -> bool:
    if version.prerelease and not any(comparator.operand.prerelease for comparator in group):
        return False
    return all(comparator.matches(version) for comparator in group)


def is_digest_constraint(text: str) -> bool:
    """Tell whether a dependency's version names one image: ``sha256:`` and 64 lower-case hex."""
    return _DIGEST.fullmatch(text) is not None


def highest(tags: Iterable[str], constraints: Iterable[Constraint]) -> str | None:
    """Return the tag of the highest version that satisfies all constraints.

    Args:
        tags: tags of a repository, in any order; those that are no version and those that name
            one incompletely (``v1``, ``v1.2``) are passed over.
        constraints: all must hold; none given means any release.

    Returns:
        The tag as it is spelled; of two spellings of one version the one with a leading ``v``.
        None when no tag satisfies.

    Source: Crossplane's choice of a dependency's version.
    """
    wanted = list(constraints) or [Constraint.parse("*")]
    candidates = []
    for tag in tags:
        try:
            version = Version.parse(tag)
        except VersionError:
            continue
        if version.is_complete and all(constraint.matches(version) for constraint in wanted):
            candidates.append(version)
    best = max(candidates, key=lambda version: (version.precedence, version.original), default=None)
    return None if best is None else best.original
