"""The machinery in isolation: `watch`, `queue` and `store-memory`, and all of it: `controller`.

Each measurement runs in a process of its own, so that none sees memory or caches of another. Its
module has a function ``measure()``, which returns figures: a data class, a mapping, or several.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from tests.bench.results import ROOT, keep, rows_of, table

SECONDS = 900.0  # for one measurement


@dataclass(frozen=True, slots=True)
class Measurement:
    """Where a measurement is, and what it should reach."""

    module: str
    target: str


MEASUREMENTS = {
    "watch": Measurement(
        "tests.kube.decode_bench", "decode and apply >= 20,000 events/s of 2 KB on one core"
    ),
    "queue": Measurement("tests.flow.speed", "add, get and done of a key <= 5 µs, with metrics"),
    "store-memory": Measurement(
        "tests.kube.memory_bench", "metadata of 2,065 definitions <= 10 MiB over the idle process"
    ),
}


def run(name: str) -> int:
    """Run one measurement, print its table and keep it; return 1 when there is none."""
    measurement = MEASUREMENTS[name]
    try:
        rows = figures(measurement)
    except MeasurementError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    shown = rows
    if len(rows) == 1:
        shown = [{"figure": figure, "value": value} for figure, value in rows[0].items()]
    print(f"\n{name}: target {measurement.target}\n\n{table(shown)}")
    print(f"\nkept in {keep(name, shown, target=measurement.target)}")
    return 0


class MeasurementError(Exception):
    """There is no such measurement, or it failed; the text says which."""


def figures(measurement: Measurement) -> list[dict[str, Any]]:
    """Run a measurement in a process of its own and return its rows.

    Raises:
        MeasurementError: its module or function is missing, or it failed.
    """
    if importlib.util.find_spec(measurement.module) is None:
        raise MeasurementError(f"there is no module {measurement.module} to measure with")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.controller", measurement.module],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        text = f"{measurement.module} did not end within {SECONDS:.0f} s"
        raise MeasurementError(text) from None
    if done.returncode != 0:
        raise MeasurementError(f"{measurement.module} failed: {done.stdout.strip()[-400:]}")
    *said, last = done.stdout.strip().splitlines()
    if said:
        print("\n".join(said))
    return rows_of(json.loads(last))


def main() -> int:
    """Measure in this process; the last line printed is the figures as JSON."""
    name = sys.argv[1]
    measure = getattr(importlib.import_module(name), "measure", None)
    if measure is None:
        print(f"{name} has no function measure()")
        return 1
    found = measure()
    if inspect.iscoroutine(found):
        found = asyncio.run(found)
    print(json.dumps(rows_of(found), default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
