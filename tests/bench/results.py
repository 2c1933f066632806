"""How figures are shown and kept: a Markdown table on the screen, JSON under bench-results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench-results"

Row = Mapping[str, Any]


def row_of(value: Any) -> dict[str, Any]:
    """Return one figure, a data class or a mapping, by the names of its columns.

    Raises:
        TypeError: it is neither.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(name): entry for name, entry in value.items()}
    raise TypeError(f"figures are data classes or mappings, not {type(value).__name__}")


def rows_of(value: Any) -> list[dict[str, Any]]:
    """Return figures, one or several, as rows.

    Raises:
        TypeError: they are of a shape that has no columns.
    """
    several = isinstance(value, Iterable) and not isinstance(value, Mapping | str | bytes)
    return [row_of(each) for each in value] if several else [row_of(value)]


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; a row may lack columns that another has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[name.replace("_", " ") for name in names]]
    cells += [[_shown(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    lines = [
        "| "
        + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def keep(name: str, rows: Sequence[Row], **more: Any) -> Path:
    """Write rows to bench-results, as JSON and as a table; return the path of the JSON."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content: Any = {"rows": list(rows), **more} if more else list(rows)
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")
    path.with_suffix(".md").write_text(table(rows) + "\n")
    return path


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
