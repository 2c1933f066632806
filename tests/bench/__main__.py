"""`make bench SCENARIO=…`: measurements, each beside what limits it or what else does the work.

Every scenario prints a table and keeps it, as JSON too, under bench-results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

from tests.bench import controller, idle, packages, pull

SCENARIOS: dict[str, Callable[[], int]] = {
    "install-large": partial(packages.run, "install-large", packages.large_package),
    "real-packages": partial(packages.run, "real-packages", packages.real_packages),
    "watch": partial(controller.run, "watch"),
    "queue": partial(controller.run, "queue"),
    "store-memory": partial(controller.run, "store-memory"),
    "idle": idle.run,
    "idle-profile": partial(idle.run, profile=True),
    "pull-large": pull.pull_large,
    "pull-many": pull.pull_many,
    "oci-tools": pull.oci_tools,
}
CONTROLLER = ("watch", "queue", "store-memory", "idle")


def run_controller() -> int:
    """Run every scenario of the machinery; return how many had nothing to measure."""
    return sum(SCENARIOS[name]() for name in CONTROLLER)


def main(arguments: list[str] | None = None) -> int:
    """Run one scenario; return 0 when it measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    scenarios = {**SCENARIOS, "controller": run_controller}
    parser.add_argument("scenario", choices=sorted(scenarios))
    chosen = parser.parse_args(arguments)
    return min(1, scenarios[chosen.scenario]())


if __name__ == "__main__":
    sys.exit(main())
