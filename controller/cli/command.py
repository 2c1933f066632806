"""The command line: its verbs and spellings, and how errors become words and exit codes.

What takes time to import is imported where a verb needs it, so that ``--help`` and ``version``
answer at once.

Source: Crossplane's command line (``xpkg``, ``resource`` and ``core`` groups); the first release's
(verb, then kind).
"""

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError

from controller.cli import cache
from controller.cli.build import build
from controller.cli.extract import extract
from controller.cli.failures import explain, usage_error
from controller.cli.help import PlainHelp
from controller.cli.init import init
from controller.cli.install import install
from controller.cli.list import list_packages
from controller.cli.pull import pull
from controller.cli.push import push
from controller.cli.session import DONE, INTERRUPTED, Session, UsageError
from controller.cli.start import start
from controller.cli.trace import trace
from controller.cli.uninstall import uninstall
from controller.cli.version import version

VERBS: dict[str, tuple[Any, str]] = {
    "init": (init, "[OPTIONS]"),
    "start": (start, "[OPTIONS]"),
    "build": (build, "[configuration|function|provider] [OPTIONS]"),
    "push": (push, "[configuration|function|provider] REF [OPTIONS]"),
    "pull": (pull, "REF [OPTIONS]"),
    "extract": (extract, "[REF|FILE] [OPTIONS]"),
    "install": (install, "configuration|function|provider REF [NAME] [OPTIONS]"),
    "uninstall": (uninstall, "configuration|function|provider NAME [OPTIONS]"),
    "list": (list_packages, "[configuration|function|provider] [OPTIONS]"),
    "trace": (trace, "configuration|function|provider [NAME] [OPTIONS]"),
    "version": (version, ""),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "xpkg": ("build", "push", "install", "extract"),
    "resource": ("trace",),
    "core": ("init", "start"),
}
CACHE: dict[str, tuple[Any, str]] = {
    "ls": (cache.ls, "[OPTIONS]"),
    "verify": (cache.verify, "[OPTIONS]"),
    "prune": (cache.prune, "[OPTIONS]"),
    "export": (cache.export, "TARGET [PACKAGE…] [OPTIONS]"),
    "import": (cache.import_, "SOURCE… [OPTIONS]"),
}
ABOUT = "Build, publish and install Crossplane packages, and run the manager that does the work."


def make_app(session: Session) -> App:
    """Return the parser of the whole command line.

    Args:
        session: its program name heads every usage line, its streams take the help.
    """
    app = App(
        name=session.program,
        help=f"{ABOUT} '{session.program} VERB --help' tells about a verb.",
        usage=f"{session.program} VERB …",
        version_flags=(),
        help_formatter=PlainHelp(session.stdout),
        help_format="plaintext",
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
    )
    app["--help"].show = False
    for verb, (function, arguments) in VERBS.items():
        usage = f"{session.program} {verb} {arguments}".rstrip()
        app.command(function, name=verb, usage=usage, sort_key=list(VERBS).index(verb))
    app.command(_cache(session))
    for group, verbs in GROUPS.items():
        names = " | ".join(verbs)
        nested = App(
            name=group,
            help=f"Crossplane's spelling of {' and '.join(verbs)}.",
            show=False,
            usage=f"{session.program} {group} {names} …",
        )
        for verb in verbs:
            function, arguments = VERBS[verb]
            usage = f"{session.program} {group} {verb} {arguments}".rstrip()
            nested.command(function, name=verb, usage=usage)
        app.command(nested)
    return app


def _cache(session: Session) -> App:
    nested = App(
        name="cache",
        help="Look into the manager's package cache, check it, and carry packages elsewhere.",
        usage=f"{session.program} cache {' | '.join(CACHE)} …",
        sort_key=len(VERBS),
    )
    for verb, (function, arguments) in CACHE.items():
        usage = f"{session.program} cache {verb} {arguments}"
        nested.command(function, name=verb, usage=usage, sort_key=list(CACHE).index(verb))
    return nested


def run(argv: Sequence[str], session: Session) -> int:
    """Run one command line to its end.

    Args:
        argv: the words after the program's name.
        session: the world outside.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 3 not ready in time, 130 interrupted.
    """
    app = make_app(session)
    words = ["version"] if list(argv) == ["--version"] else list(argv)
    try:
        function, bound, injected = app.parse_args(words)
    except CycloptsError as error:
        return _refuse(usage_error(error), app, argv, session)
    try:
        result = function(*bound.args, **bound.kwargs, **dict.fromkeys(injected, session))
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
    except UsageError as error:
        return _refuse(error, app, argv, session)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the border to the person: every error becomes a line
        told = explain(error, session)
        session.note(f"{session.program}: error: {told}")
        return told.code
    return result if isinstance(result, int) else DONE


def _refuse(error: UsageError, app: App, argv: Sequence[str], session: Session) -> int:
    """Print the usage of the deepest verb that was reached, then the error."""
    chain: list[str] = []
    reached = app
    for word in argv:
        if word.startswith("-") or word not in reached:
            break
        chain.append(word)
        reached = reached[word]
    session.note(f"usage: {reached.usage}")
    if reached is app:
        session.note(f"verbs: {', '.join([*VERBS, 'cache'])}")
    session.note(f"{session.program}: error: {error}")
    return error.code
