"""The lab's command: ``python -m tests.lab up|down|status|build|core-crds``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from tests.lab import binaries, core, lab, state
from tests.lab.apiserver import ApiServer
from tests.lab.components import HERE, Layout, Options
from tests.lab.errors import LabError
from tests.lab.supervisor import Lifetime, Supervisor


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: in place of those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage.
    """
    wish = _parser().parse_args(arguments)
    if not sys.platform.startswith("linux"):
        _note("the lab runs on Linux alone: use a Linux machine, container or virtual machine")
        return 1
    try:
        return int(wish.run(wish))
    except LabError as error:
        _note(str(error))
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    up = verbs.add_parser("up", help="start a lab; it runs until Ctrl-C")
    up.add_argument("--dir", type=Path, required=True, help="folder of this lab alone")
    up.add_argument("--detach", action="store_true", help="return when it is ready")
    up.add_argument("--audit", action="store_true", help="write an audit log of all requests")
    up.add_argument("--apiserver-arg", action="append", default=[], metavar="ARG")
    up.add_argument("--stages", type=Path, default=HERE / "stages", help="KWOK Stage files")
    up.add_argument("--discard", action="store_true", help="remove its data when it ends")
    up.add_argument("--until-unused", action="store_true", help=argparse.SUPPRESS)
    up.set_defaults(run=_up)
    down = verbs.add_parser("down", help="end the lab in a folder")
    down.add_argument("--dir", type=Path, required=True)
    down.set_defaults(run=_down)
    status = verbs.add_parser("status", help="tell what runs in a folder")
    status.add_argument("--dir", type=Path, required=True)
    status.set_defaults(run=_status)
    build = verbs.add_parser("build", help="provide all binaries before they are needed")
    build.add_argument("--with", dest="more", action="append", default=[], choices=["helm"])
    build.set_defaults(run=_build)
    crds = verbs.add_parser("core-crds", help="define the kinds of Crossplane's core")
    crds.add_argument("--kubeconfig", type=Path, required=True)
    crds.add_argument("--managed", action="store_true", help=f"{core.MANAGED} as well")
    crds.add_argument("names", nargs="*", metavar="PLURAL.GROUP", help="these alone")
    crds.set_defaults(run=_core_crds)
    return parser


def _up(wish: argparse.Namespace) -> int:
    folder = wish.dir.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if wish.detach:
        arguments = ["--audit"] * wish.audit + ["--discard"] * wish.discard
        arguments += [f"--apiserver-arg={each}" for each in wish.apiserver_arg]
        arguments += [f"--stages={wish.stages.resolve()}"]
        _show(lab.spawn(folder, arguments, announce=_note))
        return 0
    supervisor = Supervisor(
        layout=Layout(folder),
        binaries=binaries.resolve(binaries.LAB, announce=_note),
        options=Options(
            audit=wish.audit,
            api_server_arguments=tuple(wish.apiserver_arg),
            stages=wish.stages.resolve(),
        ),
        lifetime=Lifetime(until_unused=wish.until_unused, discard=wish.discard),
        announce=_note,
        ready=_show,
    )
    return asyncio.run(supervisor.run())


def _down(wish: argparse.Namespace) -> int:
    found = lab.end(wish.dir)
    _note("ended" if found else f"{wish.dir} never held a lab")
    return 0


def _status(wish: argparse.Namespace) -> int:
    found = state.load(Layout(wish.dir.resolve()).state)
    if found is None:
        _note(f"{wish.dir} never held a lab")
        return 1
    _show(found)
    return 0 if found.status == "ready" else 1


def _build(wish: argparse.Namespace) -> int:
    names = (*binaries.LAB, *binaries.TOOLS, *wish.more)
    for name, path in binaries.resolve(names, announce=_note).items():
        sys.stdout.write(f"{name} {path}\n")
    return 0


def _core_crds(wish: argparse.Namespace) -> int:
    names = tuple(wish.names) or core.names()
    names += (core.MANAGED,) if wish.managed and core.MANAGED not in names else ()
    for name in core.apply(ApiServer(wish.kubeconfig), names):
        sys.stdout.write(f"{name}\n")
    return 0


def _show(found: state.State) -> None:
    sys.stdout.write(lab.pretty(found.public()) + "\n")
    sys.stdout.flush()


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
