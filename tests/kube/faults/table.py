"""A pytest plugin: prints what the tests of faults measured, as a table at the run's end.

A test records rows with ``record_property(NAME, row)``; so they reach the main process of a run in
several processes too. With $CROSSDOCK_FAULTS_JSON, a folder, the rows are written there as well.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

NAME = "fault survived"
_COLUMNS = ("fault", "what happened", "notice s", "recover s", "requests", "busiest minute")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the rows of all tests that ran."""
    rows = [
        {**row, "test": report.nodeid, "outcome": report.outcome}
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, row in report.user_properties
        if name == NAME
    ]
    if not rows:
        return
    rows.sort(key=lambda row: str(row["fault"]))
    terminalreporter.section("faults survived")
    for line in _lines(rows):
        terminalreporter.write_line(line)
    folder = os.environ.get("CROSSDOCK_FAULTS_JSON")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "faults.json").write_text(json.dumps(rows, indent=2) + "\n")


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    table = [_COLUMNS, *(tuple(_cell(row[column]) for column in _COLUMNS) for row in rows)]
    widths = [max(len(line[number]) for line in table) for number in range(len(_COLUMNS))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
