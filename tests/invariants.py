"""The promises of the Kubernetes machinery, and which tests show that they are kept.

`make invariants` prints the table; a test sees to it that no promise is without one. A test shows
the promise whose number begins its name: ``test_r8_…`` shows R8.

Source: client-go's reflector, informers, work queue, event recorder and leader election,
controller-runtime's controller, manager and finalizers.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parent
PROMISES = {
    "R1": "first list from version 0, later ones never older than what was seen",
    "R2": "410 on a watch keeps the version, 410 on a list asks for the newest state at once",
    "R3": "a version that the server has not seen is told apart from other timeouts",
    "R4": "pages: limits, and what follows when a continue token has expired",
    "R5": "a list replaces the store first, then its version is noted",
    "R6": "each watch has bookmarks and an end; bookmarks touch no object",
    "R7": "synthetic additions do not advance the version",
    "R8": "a broken watch goes on where it was, without a list",
    "R9": "a very short watch backs off",
    "R10": "a streaming list is taken whole or not at all, and its stream goes on",
    "R11": "everything ends at once on a stop; each answer is closed",
    "R12": "an unexpected object is skipped, a table refused",
    "R13": "a resync delivers the store again and asks the server nothing",
    "S1": "the store changes before anybody is told",
    "S2": "changes of one object come in the server's order, none merged",
    "S3": "what vanished while disconnected is delivered as deleted, before all else",
    "S4": "synced, for each handler, only after the whole first list",
    "S5": "an addition of a known object is a change; deletion of an unknown one is harmless",
    "S6": "a transform runs once, before store and handlers",
    "S7": "stored objects are read only, and a detector shows who changes one",
    "S8": "indexes follow objects in one step",
    "S9": "the store knows its version, and a writer can wait for its write",
    "S10": "a handler that raises hurts nobody else",
    "Q1": "a key is in one place only: waiting, in work, or both wanted and in work",
    "Q2": "a key that waits is not queued twice",
    "Q3": "never two workers on one key",
    "Q4": "first in, first out; nothing handed out is kept",
    "Q5": "shut-down hands out what waits, and can drain",
    "Q6": "of several delays the earliest wins",
    "Q7": "backoff per key doubles to a cap and is forgotten on success",
    "Q8": "priorities: raised, never lowered, a key in work blocks nobody",
    "Q9": "a cancelled getter loses nothing",
    "W1": "a key is always given back",
    "W2": "errors come back by backoff, times by the clock, halts not at all",
    "W3": "only a result without error starts backoff anew",
    "W4": "an unexpected exception is its key's failure alone",
    "W5": "a pass ends at its deadline, or is left behind",
    "W6": "each pass has an id in the log",
    "W7": "series exist before their first value",
    "W8": "an object that is gone is success",
    "E1": "an event that repeats raises the first one's count",
    "E2": "many similar events become one",
    "E3": "an object that reports too much is filtered",
    "E4": "recording never waits; what waits is bounded; refusals are final",
    "E5": "the recorder ends last, and writes what is left",
    "L1": "times that do not fit together are refused",
    "L2": "clocks of different machines are never compared",
    "L3": "a lease is taken when it is free, has run out, or is one's own",
    "L4": "each write carries the version that was read",
    "L5": "renewing takes one request; transitions count changes of holder",
    "L6": "a lease that cannot be renewed stops all writes; the process stands by",
    "L7": "a stop gives the lease back when all work has ended",
    "L8": "health tells of a leader whose lease is stale",
    "B7": "start and stop in order, nothing left behind",
    "F1": "our finalizer is there before the first side effect",
    "F2": "ours alone is removed, by a patch that tests it",
    "F3": "cleaning up twice is harmless",
    "F4": "a failed clean-up keeps the finalizer and says why",
    "F5": "finalizers are named for their domain",
    "B10": "what is sent again, when, and how long at most",
}
_NAME = re.compile(r"test_([rsqwelfb]\d+)_")


def shown() -> dict[str, list[str]]:
    """Return by promise the tests that show it, as ``file::name``."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
                match := _NAME.match(node.name)
            ):
                where = path.relative_to(TESTS.parent)
                found[match[1].upper()].append(f"{where}::{node.name}")
    return found


def table() -> str:
    """Return all promises with their tests, in Markdown."""
    found = shown()
    lines = ["| | promise | tests |", "|---|---|---|"]
    for number, promise in PROMISES.items():
        files: dict[str, int] = defaultdict(int)
        for test in found.get(number, ()):
            files[test.partition("::")[0]] += 1
        tests = ", ".join(f"`{file}` ({count})" for file, count in files.items())
        lines.append(f"| {number} | {promise} | {tests} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
