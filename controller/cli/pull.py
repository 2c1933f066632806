"""``pull``: download a package from a registry to a package file."""

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from controller.cli.flags import CaBundle, Given, InsecureRegistries
from controller.cli.push import credentials, open_package, registry_options
from controller.cli.session import DONE, CommandError

if TYPE_CHECKING:
    from controller.cli.session import Session


async def pull(
    image: Annotated[str, Parameter(name="REF")],
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], metavar="FILE")] = None,
    ca_bundle_path: CaBundle = None,
    insecure_registry: InsecureRegistries = None,
    session: Given,
) -> int:
    """Download a package from a registry to a .xpkg file, from which it can be pushed again.

    Prints the file and the digest that the registry has the package under. Equal packages give
    equal files.

    Args:
        image: the package, with registry, repository and tag or digest.
        output: the file to write; without it <name>-<digest>.xpkg in the current folder.
        ca_bundle_path: certificates that registries are trusted by.
        insecure_registry: registries that are spoken to over plain HTTP.
        session: the world outside.

    Returns:
        The exit code.
    """
    from controller.cli.images import find_image, image_source, save_image  # noqa: PLC0415 - reads YAML

    reference = image_source(image)
    options = registry_options(session, ca_bundle_path, insecure_registry)
    target = session.path(output) if output is not None else None
    folder = target.parent if target is not None else session.folder
    with session.progress() as line:
        try:
            with tempfile.TemporaryDirectory(prefix=".crossdock-", dir=folder) as scratch:
                file = Path(scratch) / "pulled.xpkg"
                async with session.registries(options) as client:
                    found = await find_image(reference, client, credentials(session), line)
                    await save_image(found, file)
                line.show(f"checking {image}")
                name = await asyncio.to_thread(_package_name, file, image, session)
                target = target or folder / _default_name(name, found.manifest.descriptor.digest)
                await asyncio.to_thread(file.replace, target)
        except OSError as error:
            text = f"cannot write into {session.shown(folder)}: {(error.strerror or '').lower()}"
            raise CommandError(f"{text}; name another file with -o") from error
    if found.manifest.index_digest is not None:
        digest = found.manifest.descriptor.digest
        session.note(f"{image} lists several images; the one that was pulled is {digest}")
    session.say(session.shown(target))
    session.say(found.digest)
    return DONE


def _package_name(file: Path, image: str, session: "Session") -> str:
    """Return the name of the package in a file that was pulled."""
    with open_package(file, None, session, called=image) as archive:
        return str((archive.meta().get("metadata") or {}).get("name") or "")


def _default_name(name: str, digest: str) -> str:
    from controller.xpkg.assemble import file_name  # noqa: PLC0415 - reads YAML
    from controller.xpkg.build import check_name  # noqa: PLC0415 - as above

    check_name(name, "metadata.name")
    return file_name(name, digest)
