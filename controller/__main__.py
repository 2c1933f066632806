"""The entry of the command ``crossdock``, also as kubectl plugin ``kubectl crossdock``."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from controller.cli.command import run
from controller.cli.session import (
    FAILED,
    INTERRUPTED,
    PLUGIN_PROGRAM,
    PROGRAM,
    Session,
    connect_cluster,
    connect_registries,
)

P = ParamSpec("P")
T = TypeVar("T")


def main() -> None:
    """Run the command line of this process and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    plugin = Path(sys.argv[0]).name.startswith("kubectl-")
    session = Session(
        program=PLUGIN_PROGRAM if plugin else PROGRAM,
        cluster=_with_warnings(connect_cluster),
        registries=_with_warnings(connect_registries),
    )
    try:
        code = run(sys.argv[1:], session)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader went away; nothing more can be told, not even at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    sys.exit(code)


def _with_warnings(connect: Callable[P, T]) -> Callable[P, T]:
    """Return a way to connect that first sends the clients' warnings to standard error."""

    def connect_telling(*args: P.args, **kwargs: P.kwargs) -> T:
        from controller.telemetry import configure_logging  # noqa: PLC0415 - takes 0.1 s

        configure_logging(format="console", level="warning")
        return connect(*args, **kwargs)

    return connect_telling


if __name__ == "__main__":
    main()
