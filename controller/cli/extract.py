"""``extract``: get the content out of a package."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from controller.cli.flags import CaBundle, Given, InsecureRegistries, Switch
from controller.cli.push import credentials, find_package, open_image, registry_options
from controller.cli.session import DONE, CommandError, UsageError

if TYPE_CHECKING:
    from controller.cli.session import Progress, RegistryOptions, Session

PACKAGE_NAME = "package.yaml"
EXAMPLES_NAME = "examples.yaml"


async def extract(
    source: Annotated[str | None, Parameter(name="REF-OR-FILE")] = None,
    /,
    *,
    from_xpkg: Switch = False,
    from_daemon: Annotated[bool, Parameter(negative=(), show=False)] = False,
    output: Annotated[str, Parameter(name=["--output", "-o"], metavar="PATH")] = "out.gz",
    ca_bundle_path: CaBundle = None,
    insecure_registry: InsecureRegistries = None,
    session: Given,
) -> int:
    """Get package.yaml, and the examples, out of a package in a registry or in a file.

    Prints the files that were written.

    Args:
        source: a package in a registry, with registry, repository and tag or digest, or a file;
            without it the only .xpkg file of the current folder.
        from_xpkg: take the source for a file even where none is found by that name.
        from_daemon: not offered: nothing here needs a container engine.
        output: a file, which holds package.yaml compressed and whose name is made to end in .gz; or
            a folder, which is there already or is named with a slash at its end, for package.yaml
            and examples.yaml.
        ca_bundle_path: certificates that registries are trusted by.
        insecure_registry: registries that are spoken to over plain HTTP.
        session: the world outside.

    Returns:
        The exit code.
    """
    if from_daemon:
        raise UsageError(
            "--from-daemon: no container engine is asked: save the image with "
            f"'docker save -o FILE IMAGE' and run '{session.program} extract FILE'"
        )
    options = registry_options(session, ca_bundle_path, insecure_registry)
    target = session.path(output)
    as_folder = output.endswith("/") or await asyncio.to_thread(target.is_dir)
    with session.progress() as line, tempfile.TemporaryDirectory(prefix="crossdock-") as scratch:
        package, examples = Path(scratch) / PACKAGE_NAME, Path(scratch) / EXAMPLES_NAME
        file = _file_of(source, from_xpkg=from_xpkg, session=session)
        if file is not None:
            line.show(f"reading {session.shown(file)}")
            await asyncio.to_thread(_read_file, file, package, examples, session)
        else:
            await _read_registry(str(source), package, examples, options, session, line)
        try:
            write = _write_folder if as_folder else _write_gzip
            written = await asyncio.to_thread(write, target, package, examples)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            text = f"cannot write {session.shown(target)}: {reason}"
            raise CommandError(f"{text}; choose another place with -o") from error
    for path in written:
        session.say(session.shown(path))
    return DONE


def _file_of(source: str | None, *, from_xpkg: bool, session: "Session") -> Path | None:
    """Return the file to read, None for a registry."""
    if source is None:
        return find_package(session.folder)
    path = session.path(source)
    return path if from_xpkg or source.endswith(".xpkg") or path.exists() else None


def _read_file(file: Path, package: Path, examples: Path, session: "Session") -> None:
    from controller.xpkg.errors import XpkgError  # noqa: PLC0415 - reads YAML

    with open_image(file, session) as archive:
        try:
            archive.stream(package)
            archive.examples(examples)
        except XpkgError as error:
            raise CommandError(f"{session.shown(file)}: {error}") from error


async def _read_registry(
    source: str,
    package: Path,
    examples: Path,
    options: "RegistryOptions",
    session: "Session",
    line: "Progress",
) -> None:
    from controller.cli.images import find_image, image_source, save_contents  # noqa: PLC0415 - reads YAML
    from controller.xpkg.errors import XpkgError  # noqa: PLC0415 - as above

    reference = image_source(source)
    async with session.registries(options) as client:
        found = await find_image(reference, client, credentials(session), line)
        try:
            await save_contents(found, package, examples)
        except XpkgError as error:
            raise CommandError(f"{source}: {error}") from error


def _write_gzip(target: Path, package: Path, _examples: Path) -> list[Path]:
    """Write package.yaml as a file that can lie in a cache."""
    from controller.xpkg.archive import build_path  # noqa: PLC0415 - reads YAML
    from controller.xpkg.compression import STEP_BYTES, GzipWriter  # noqa: PLC0415 - as above
    from controller.xpkg.files import replacing  # noqa: PLC0415 - as above

    path = build_path(target, "", ".gz")
    with package.open("rb") as stream, replacing(path) as out:
        writer = GzipWriter(out)
        while part := stream.read(STEP_BYTES):
            writer.write(part)
        writer.finish()
    return [path]


def _write_folder(target: Path, package: Path, examples: Path) -> list[Path]:
    from controller.xpkg.files import replacing  # noqa: PLC0415 - reads YAML

    target.mkdir(exist_ok=True)
    written = []
    for file in (package, examples):
        if file.exists():
            with file.open("rb") as stream, replacing(target / file.name) as out:
                shutil.copyfileobj(stream, out)
            written.append(target / file.name)
    return written
