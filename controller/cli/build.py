"""``build``: make a package file from a folder of YAML files."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from controller.cli.flags import Given
from controller.cli.names import kind_named, split_list
from controller.cli.session import DONE


def build(
    kind: Annotated[str | None, Parameter(name="KIND")] = None,
    /,
    *,
    package_root: Annotated[Path, Parameter(alias="-f", metavar="FOLDER")] = Path(),
    ignore: Annotated[list[str] | None, Parameter(negative=(), metavar="PATH,…")] = None,
    name: Annotated[str | None, Parameter(metavar="NAME")] = None,
    package_file: Annotated[
        Path | None, Parameter(name=["--output", "-o", "--package-file"], metavar="FILE")
    ] = None,
    session: Given,
) -> int:
    """Build a package: one .xpkg file from the YAML files of a folder.

    Prints the file and the digest that a registry will show for it.

    Args:
        kind: "configuration", "function" or "provider": what the package has to be.
        package_root: the folder.
        ignore: paths below the folder to leave out, with everything in them; patterns with * and ?
            are taken; a comma list, repeatable.
        name: the file's name before the digest; without it the package's own.
        package_file: the file to write; without it <name>-<digest>.xpkg in the folder.
        session: the world outside.

    Returns:
        The exit code.
    """
    resource = kind_named(kind) if kind is not None else None
    from controller.xpkg.build import build as build_package  # noqa: PLC0415 - reads YAML

    with session.progress() as line:
        line.show(f"building from {session.shown(session.path(package_root))}")
        built = build_package(
            session.path(package_root),
            kind=resource.kind if resource is not None else None,
            name=name,
            ignore=split_list(ignore or []),
            output=session.path(package_file) if package_file is not None else None,
        )
    for warning in built.warnings:
        session.note(f"warning: {warning}")
    session.say(session.shown(built.path))
    session.say(built.digest)
    return DONE
