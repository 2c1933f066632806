"""``build``: make a package file from a folder of YAML files."""

import asyncio
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from controller.cli.flags import CaBundle, Given, InsecureRegistries
from controller.cli.names import kind_named, split_list
from controller.cli.push import credentials, open_image, registry_options
from controller.cli.session import DONE, CommandError, RegistryOptions, UsageError

if TYPE_CHECKING:
    from controller.cli.session import Progress, Session
    from controller.xpkg.archive import Archive
    from controller.xpkg.build import Built


async def build(
    kind: Annotated[str | None, Parameter(name="KIND")] = None,
    /,
    *,
    package_root: Annotated[Path, Parameter(alias="-f", metavar="FOLDER")] = Path(),
    examples_root: Annotated[Path | None, Parameter(alias="-e", metavar="FOLDER")] = None,
    ignore: Annotated[list[str] | None, Parameter(negative=(), metavar="PATH,…")] = None,
    name: Annotated[str | None, Parameter(metavar="NAME")] = None,
    package_file: Annotated[
        Path | None, Parameter(name=["--output", "-o", "--package-file"], metavar="FILE")
    ] = None,
    embed_runtime_image: Annotated[str | None, Parameter(metavar="REF")] = None,
    embed_runtime_image_tarball: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    platform: Annotated[str | None, Parameter(metavar="OS/ARCH")] = None,
    compression: Annotated[Literal["gzip", "none"], Parameter(metavar="gzip|none")] = "gzip",
    ca_bundle_path: CaBundle = None,
    insecure_registry: InsecureRegistries = None,
    session: Given,
) -> int:
    """Build a package: one .xpkg file from the YAML files of a folder.

    Prints the file and the digest that a registry will show for it.

    Args:
        kind: "configuration", "function" or "provider": what the package has to be.
        package_root: the folder.
        examples_root: the folder of examples, which go into a layer of their own; without it
            "examples" in the folder.
        ignore: paths below the folder to leave out, with everything in them; patterns with * and ?
            are taken; a comma list, repeatable.
        name: the file's name before the digest; without it the package's own.
        package_file: the file to write; without it <name>-<digest>.xpkg in the folder.
        embed_runtime_image: an image in a registry that the package is put upon, so that it is what
            a provider or function runs.
        embed_runtime_image_tarball: the same from a file of "docker save", or an OCI layout.
        platform: what the runtime image has to be for, and which one to take of several in a file.
        compression: of the layers; "none" gives the same digest wherever it is built, "gzip" where
            the same zlib is used.
        ca_bundle_path: certificates that registries are trusted by.
        insecure_registry: registries that are spoken to over plain HTTP.
        session: the world outside.

    Returns:
        The exit code.
    """
    expected = kind_named(kind).kind if kind is not None else None
    options = registry_options(session, ca_bundle_path, insecure_registry)
    source = _RuntimeSource(embed_runtime_image, embed_runtime_image_tarball, platform, options)
    from controller.xpkg.build import build as build_package  # noqa: PLC0415 - reads YAML

    with ExitStack() as stack:
        line = stack.enter_context(session.progress())
        runtime = await source.open(stack, session, line)
        line.show(f"building from {session.shown(session.path(package_root))}")
        built = await asyncio.to_thread(
            build_package,
            session.path(package_root),
            kind=expected,
            name=name,
            ignore=split_list(ignore or []),
            output=session.path(package_file) if package_file is not None else None,
            examples_root=session.path(examples_root) if examples_root is not None else None,
            runtime=runtime,
            compression="plain" if compression == "none" else compression,
        )
    return _tell(built, session)


def _tell(built: "Built", session: "Session") -> int:
    for warning in built.warnings:
        session.note(f"warning: {warning}")
    session.say(session.shown(built.path))
    session.say(built.digest)
    return DONE


@dataclass(frozen=True, slots=True)
class _RuntimeSource:
    """Where the runtime image comes from: a registry, a file, or nowhere."""

    image: str | None
    tarball: Path | None
    platform: str | None
    options: RegistryOptions

    def __post_init__(self) -> None:
        if self.image is not None and self.tarball is not None:
            both = "--embed-runtime-image and --embed-runtime-image-tarball"
            raise UsageError(f"{both}: give only one of them")
        if self.platform is not None and self.image is None and self.tarball is None:
            raise UsageError("--platform: it chooses a runtime image, and none is given")

    async def open(
        self, stack: ExitStack, session: "Session", line: "Progress"
    ) -> "Archive | None":
        """Return the image, open until the stack ends; None for nowhere."""
        if self.tarball is not None:
            file, called = session.path(self.tarball), str(self.tarball)
        elif self.image is not None:
            folder = tempfile.TemporaryDirectory(prefix="crossdock-")
            file, called = Path(stack.enter_context(folder)) / "runtime", self.image
            await _pull_runtime(called, file, self.options, session, line)
        else:
            return None
        work = asyncio.to_thread(_open_runtime, file, called, self.platform, session)
        return stack.enter_context(await work)


async def _pull_runtime(
    image: str, file: Path, options: RegistryOptions, session: "Session", line: "Progress"
) -> None:
    """Write an image of a registry to a file."""
    from controller.cli.images import find_image, image_source, save_image  # noqa: PLC0415 - reads YAML

    reference = image_source(image)
    async with session.registries(options) as client:
        found = await find_image(reference, client, credentials(session), line)
        await save_image(found, file)


def _open_runtime(file: Path, called: str, platform: str | None, session: "Session") -> "Archive":
    """Return an open runtime image, of the platform that is asked for."""
    from controller.xpkg.archive import images_in  # noqa: PLC0415 - reads YAML
    from controller.xpkg.errors import XpkgError  # noqa: PLC0415 - as above
    from controller.xpkg.image import platform_text  # noqa: PLC0415 - as above

    try:
        several = len(images_in(file)) > 1
    except XpkgError as error:
        raise CommandError(f"failed to load runtime tarball: {called}: {error}") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CommandError(f"failed to load runtime tarball: {called}: {reason}") from error
    choice = platform if platform is not None and several else ""
    archive = open_image(file, session, choice=choice, called=called)
    found = platform_text(archive.platform)
    if platform is not None and found != platform:
        archive.close()
        raise CommandError(
            f"{called} is for {found or 'no platform'}, not for {platform}: name the image for "
            f"{platform}, in a registry by its digest"
        )
    return archive
