"""The entry of the command ``crossdock``, also as kubectl plugin ``kubectl crossdock``."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from controller.cli.command import run
from controller.cli.session import FAILED, INTERRUPTED, PLUGIN_PROGRAM, PROGRAM, Session


def main() -> None:
    """Run the command line of this process and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    plugin = Path(sys.argv[0]).name.startswith("kubectl-")
    try:
        code = run(sys.argv[1:], Session(program=PLUGIN_PROGRAM if plugin else PROGRAM))
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader went away; nothing more can be told, not even at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    sys.exit(code)


if __name__ == "__main__":
    main()
