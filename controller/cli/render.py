"""Tables, trees and ages as text. Pure.

Source: the layout of Go's tabwriter as kubectl and Crossplane's command line use it (three spaces
between columns, no padding at the end of a line); kubectl's short ages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

T = TypeVar("T")

MISSING = "-"
_PADDING = 3
_MIN_WIDTH = 6


@dataclass(frozen=True, slots=True)
class Branch(Generic[T]):
    """A node of a tree and what hangs below it."""

    value: T
    children: tuple[Branch[T], ...] = ()


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose columns are as wide as their widest cell.

    Args:
        header: the column names.
        rows: cells as text, as many as the header has; line breaks in them become spaces.

    Returns:
        The header line and one line for each row, without trailing spaces.
    """
    cells = [[" ".join(cell.split("\n")) for cell in row] for row in (header, *rows)]
    widths = [
        max(_MIN_WIDTH, _PADDING + max(len(row[column]) for row in cells))
        for column in range(len(header))
    ]
    return [
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def tree(root: Branch[T]) -> list[tuple[str, T]]:
    """Return the nodes of a tree from the top, each with the lines that lead to it.

    Returns:
        Pairs of prefix (``├─ ``, ``└─ `` after ``│  `` or spaces; empty for the root) and value.
    """
    lines: list[tuple[str, T]] = []
    pending: list[tuple[str, str, Branch[T]]] = [("", "", root)]
    while pending:
        prefix, below, branch = pending.pop()
        lines.append((prefix, branch.value))
        last = len(branch.children) - 1
        for index in range(last, -1, -1):
            connector, rail = ("└─ ", "   ") if index == last else ("├─ ", "│  ")
            pending.append((below + connector, below + rail, branch.children[index]))
    return lines


def age(created: str, now: datetime) -> str:
    """Return how long ago an RFC 3339 stamp was: ``45s``, ``12m``, ``5h``, ``3d``, ``2y40d``.

    Returns:
        ``-`` where there is no stamp; ``0s`` for one in the future (clocks differ).
    """
    if not created:
        return MISSING
    past = max(now - datetime.fromisoformat(created), timedelta())
    seconds, days = int(past.total_seconds()), past.days
    limits = ((120, seconds, "s"), (7200, seconds // 60, "m"), (172_800, seconds // 3600, "h"))
    for limit, amount, unit in limits:
        if seconds < limit:
            return f"{amount}{unit}"
    if days < 2 * 365:
        return f"{days}d"
    years, rest = divmod(days, 365)
    return f"{years}y{rest}d" if rest else f"{years}y"


def size(count: int) -> str:
    """Return bytes as ``812 B``, ``4.3 kB``, ``17 MB``; decimal units."""
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 object``, ``3 objects``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shortened(text: str, limit: int = 64) -> str:
    """Return a long text as its last characters after ``...``: the cause stands at the end.

    Source: Crossplane's ``resource trace``.
    """
    return text if len(text) <= limit else "..." + text[-limit:]
