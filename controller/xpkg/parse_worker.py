"""Parse worker: the program that reads a package's YAML in a process of its own.

Imports only what it needs. Standard output carries one JSON object: ``{}`` or the error.

Source: design, "Fast by design": parsing holds the interpreter lock, so it gets its own process.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

import orjson

from controller.model.content import parse_to_lines
from controller.model.manifest import ManifestError


def main(stream: str, lines: str, source: str, seconds: str, memory: str) -> int:
    """Parse one package within limits on processor time and memory.

    Args:
        stream: path of package.yaml.
        lines: path of the parsed form to write; must not exist.
        source: what errors call the stream.
        seconds: of processor time, after which the system ends the process.
        memory: bytes of address space.

    Returns:
        The exit code: 0 when the answer on standard output is complete.
    """
    _limit(resource.RLIMIT_CPU, int(seconds))
    _limit(resource.RLIMIT_AS, int(memory))
    os.nice(5)
    answer: dict[str, Any] = {}
    try:
        with Path(stream).open("rb") as package, Path(lines).open("xb") as out:
            parse_to_lines(package, out, source=source)
            out.flush()
            os.fsync(out.fileno())
    except ManifestError as error:
        answer = {"manifest": [error.source, error.document, error.line, error.cause]}
    except MemoryError:
        answer = {"memory": True}
    except OSError as error:
        answer = {"os": [error.errno or 0, error.strerror or str(error), error.filename]}
    sys.stdout.buffer.write(orjson.dumps(answer))
    sys.stdout.buffer.flush()
    return 0


def _limit(kind: int, value: int) -> None:
    """Lower a limit of this process, as far as the system lets it."""
    _, hard = resource.getrlimit(kind)
    wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (wanted, hard))
