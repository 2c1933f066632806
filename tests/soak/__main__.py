"""`make soak`: an hour of the real manager on a real control plane, with churn and faults.

Packages come, change version, are labelled and go; strangers edit and delete what they own. Every
half minute or so the API server, the registry or the connections fail in one of several ways. The
manager is never started anew. Ends with a report, also after Ctrl-C or SIGTERM; the exit code is 1
when something did not come back in time, memory or descriptors grew, or the log holds a traceback.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.bench.results import RESULTS
from tests.soak.report import judge, write
from tests.soak.run import say, soak


def main(arguments: list[str] | None = None) -> int:
    """Run one soak; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--seed", type=int, help="repeats the course of an earlier soak")
    chosen = parser.parse_args(arguments)
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(10**6)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has them ignored
        signal.signal(number, signal.default_int_handler)
    say(f"soak of {chosen.minutes:g} min with --seed {seed}")
    with tempfile.TemporaryDirectory(prefix="crossdock-soak-") as place:
        seen = soak(Path(place), minutes=chosen.minutes, seed=seed)
        text, path = write(seen)
        RESULTS.mkdir(exist_ok=True)
        log = path.with_suffix(".log")
        shutil.copyfile(Path(place) / "home" / "manager.log", log)
    sys.stdout.write(f"\n{text}\n\nkept in {path}\nthe manager's log: {log}\n")
    return 1 if judge(seen) else 0


if __name__ == "__main__":
    sys.exit(main())
