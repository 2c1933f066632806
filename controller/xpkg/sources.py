"""Sources: which YAML files of a folder make up a package, in an order that never changes.

Source: Crossplane's ``xpkg build`` (files and order); Go's ``filepath.Match`` (patterns).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controller.xpkg.errors import BuildError

SUFFIXES: Final = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One YAML file: where it is, and its path from the root with ``/`` between its parts."""

    path: Path
    relative: str


class Ignore:
    """Patterns of paths to leave out; one that matches a folder leaves out all that is in it."""

    def __init__(self, patterns: Sequence[str], root: Path) -> None:
        """Read patterns.

        Args:
            patterns: relative to the root, or absolute below it; ``*`` and ``?`` match within one
                part of a path, ``[a-z]`` and ``[^a-z]`` one character, a backslash takes the next
                character as it is.
            root: an absolute path.

        Raises:
            BuildError: a pattern is not well formed, or lies outside the root.
        """
        self._patterns = [_compiled(_relative(pattern, root), pattern) for pattern in patterns]

    def matches(self, relative: str) -> bool:
        """Tell whether a path, or a folder it lies in, is left out."""
        parts = relative.split("/")
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        return any(pattern.fullmatch(path) for pattern in self._patterns for path in above)


def yaml_files(root: Path, ignore: Ignore, *, below: str = "") -> list[SourceFile]:
    """Return the YAML files below a folder, hidden ones too, sorted by the bytes of their paths.

    Links to files are followed, links to folders are not.

    Args:
        root: where relative paths begin.
        ignore: what to leave out.
        below: the folder to search, from the root; empty for the root itself.

    Raises:
        BuildError: a folder cannot be read, or a link leads nowhere.
    """
    found = list(_walk(root, below, ignore))
    return sorted(found, key=lambda file: os.fsencode(file.relative))


def _walk(root: Path, below: str, ignore: Ignore) -> Iterator[SourceFile]:
    pending = [below]
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as error:
            raise BuildError(f"cannot read {root / folder}: {error.strerror}") from error
        for entry in entries:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if ignore.matches(relative):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(relative)
            elif entry.name.endswith(SUFFIXES) and _is_file(Path(entry.path), relative):
                yield SourceFile(Path(entry.path), relative)


def _is_file(path: Path, relative: str) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise BuildError(f"{relative}: cannot read it: {error.strerror}") from error


def escaped(path: str) -> str:
    """Return a pattern that matches one path alone."""
    return re.sub(r"([*?\[\\])", r"\\\1", path)


def _relative(pattern: str, root: Path) -> str:
    """Return a pattern from the root, without ``./`` and a trailing ``/``."""
    text = pattern.strip()
    if text.startswith("/"):
        prefix = f"{root.as_posix().rstrip('/')}/"
        if not text.startswith(prefix):
            raise BuildError(f'--ignore "{pattern}" lies outside the package root {root}')
        text = text[len(prefix) :]
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        raise BuildError(f'--ignore "{pattern}" names nothing inside the package root')
    return "/".join(parts)


def _compiled(text: str, pattern: str) -> re.Pattern[str]:
    """Return a pattern as a regular expression for whole paths."""
    regex = ""
    rest = text
    while rest:
        found = _TOKEN.match(rest)
        if found is None:
            raise BuildError(f'syntax error in pattern: --ignore "{pattern}"')
        regex += _translated(found)
        rest = rest[found.end() :]
    try:
        return re.compile(regex, re.DOTALL)
    except re.error as error:
        raise BuildError(f'syntax error in pattern: --ignore "{pattern}": {error}') from error


_TOKEN = re.compile(
    r"(?P<star>\*)|(?P<any>\?)|\[(?P<not>[\^!]?)(?P<set>\]?(?:\\.|[^\]\\])+)\]"
    r"|\\(?P<escaped>.)|(?P<plain>[^\\\[])",
    re.DOTALL,
)


def _translated(token: re.Match[str]) -> str:
    if token["star"]:
        return "[^/]*"
    if token["any"]:
        return "[^/]"
    if token["set"]:
        inner = re.sub(r"([\[\]&~|^])", r"\\\1", token["set"].replace("\\", ""))
        return f"(?!/)[{'^' if token['not'] else ''}{inner}]"
    return re.escape(token["escaped"] or token["plain"])
