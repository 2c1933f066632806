"""``push``: upload a package file to a registry."""

import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from controller.cli.flags import CaBundle, Given, InsecureRegistries, from_environment
from controller.cli.names import kind_named, read_failure, split_list
from controller.cli.render import size
from controller.cli.session import DONE, CommandError, RegistryOptions, UsageError
from controller.model.lock import split_source

if TYPE_CHECKING:
    from controller.cli.session import Progress, Session
    from controller.registry.client import RegistryClient
    from controller.registry.credentials import Keychain
    from controller.registry.reference import Reference
    from controller.xpkg.archive import Archive
    from controller.xpkg.image import Blob


async def push(
    first: Annotated[str, Parameter(name="REF")],
    second: Annotated[str | None, Parameter(name="REF", show=False)] = None,
    /,
    *,
    package: Annotated[
        Path | None, Parameter(name=["--package", "-f", "--package-files"], metavar="FILE")
    ] = None,
    ca_bundle_path: CaBundle = None,
    insecure_registry: InsecureRegistries = None,
    session: Given,
) -> int:
    """Push a package file to a registry, with the credentials of Docker or Podman.

    Prints the reference with the digest that the registry has it under.

    Args:
        first: where the package goes, with registry, repository and tag; a kind before it
            ("configuration", "function" or "provider") makes sure what the file holds.
        second: the reference, where a kind comes first.
        package: the file; without it the only .xpkg file of the current folder.
        ca_bundle_path: certificates that registries are trusted by.
        insecure_registry: registries that are spoken to over plain HTTP.
        session: the world outside.

    Returns:
        The exit code.
    """
    kind = kind_named(first).kind if second is not None else None
    text = second if second is not None else first
    reference = push_target(text)
    file = session.path(package) if package is not None else find_package(session.folder)
    bundle = ca_bundle_path or from_environment(session, "CA_BUNDLE_PATH")
    options = RegistryOptions(
        ca_bundle=session.path(bundle) if bundle else None,
        insecure=split_list(insecure_registry or []),
        environ=session.environ,
    )
    with session.progress() as line:
        line.show(f"reading {session.shown(file)}")
        archive = await asyncio.to_thread(open_package, file, kind, session)
        with archive:
            async with session.registries(options) as client:
                digest = await upload(
                    archive, reference, client=client, keychain=credentials(session), line=line
                )
    session.say(f"{text}@{digest}")
    return DONE


def push_target(text: str) -> "Reference":
    """Return the reference that a package is pushed to.

    Raises:
        UsageError: the registry or the tag is missing, or a digest is named.
    """
    from controller.registry.failures import InvalidReference  # noqa: PLC0415 - loads no client
    from controller.registry.reference import parse_reference  # noqa: PLC0415 - as above

    start = f'failed to parse package tag "{text}"'
    example = "for example registry.example.com/repo/package:v1.0.0"
    if "@" in text:
        raise UsageError(f"{start}: a package is pushed to a tag, leave out the digest")
    host, path = split_source(text)
    if not host:
        raise UsageError(f"{start}: it names no registry: write registry/repository:tag, {example}")
    if ":" not in path:
        raise UsageError(f"{start}: it names no tag: add one, {example}")
    try:
        return parse_reference(text, strict=False)
    except InvalidReference as error:
        raise UsageError(f"{start}: {error.cause}") from error


def find_package(folder: Path) -> Path:
    """Return the only package file of a folder; folders that are named like one do not count.

    Raises:
        CommandError: there is none, there are several, or the folder cannot be read.
    """
    from controller.xpkg.archive import find_xpkg  # noqa: PLC0415 - reads YAML
    from controller.xpkg.errors import PackageNotFound  # noqa: PLC0415 - as above

    start = "failed to find a package in current working directory"
    try:
        return find_xpkg(folder)
    except OSError as error:
        raise read_failure(error, start + ":", folder) from error
    except PackageNotFound as error:
        raise CommandError(f"{start}: {error}; name the file with -f") from error


def open_package(file: Path, kind: str | None, session: "Session") -> "Archive":
    """Return an open package file that holds a package, of the kind that is asked for.

    Args:
        file: a ``.xpkg`` file.
        kind: None for any.
        session: how the file is called in messages.

    Raises:
        CommandError: it cannot be read, holds no package, or one of another kind.
    """
    from controller.xpkg.archive import Archive  # noqa: PLC0415 - reads YAML
    from controller.xpkg.errors import XpkgError  # noqa: PLC0415 - as above

    shown = session.shown(file)
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(Archive(file))
            found: str = archive.meta()["kind"]
        except OSError as error:
            raise read_failure(error, "cannot read", shown) from error
        except XpkgError as error:
            raise CommandError(f"{shown} is no package: {error}") from error
        if kind not in {None, found}:
            raise CommandError(
                f"{shown} holds a {found}, not a {kind}: push it as {found.lower()}, or name "
                "another file with -f"
            )
        stack.pop_all()
        return archive


def credentials(session: "Session") -> "Keychain":
    """Return the credentials of Docker or Podman; their helpers are run."""
    from controller.registry.dockerconfig import docker_keychain  # noqa: PLC0415 - only where one is read

    home = Path(session.environ.get("HOME") or Path.home())
    return docker_keychain(session.environ, home, helpers=True)


async def upload(
    archive: "Archive",
    reference: "Reference",
    *,
    client: "RegistryClient",
    keychain: "Keychain",
    line: "Progress",
) -> str:
    """Store a package in a registry: what is missing of its blobs, then its manifest.

    Returns:
        The digest of the manifest.

    Raises:
        RegistryError: the registry did not take it.
    """
    with tempfile.TemporaryDirectory(prefix="crossdock-") as scratch:
        for number, blob in enumerate(archive.blobs, start=1):
            part = f"part {number} of {len(archive.blobs)}, {size(blob.size)}"
            line.show(f"pushing {reference}: {part}")
            content = await _content(archive, blob, Path(scratch))
            await client.push_blob(reference, content, keychain, media_type=blob.media_type)
    manifest = archive.manifest()
    return await client.push_manifest(reference, manifest.raw, manifest.media_type, keychain)


async def _content(archive: "Archive", blob: "Blob", scratch: Path) -> bytes | Path:
    """Return what is sent of a blob: the configuration from memory, a layer from a file."""
    if blob.digest == archive.config.digest:
        return archive.config_raw
    file = scratch / "layer"
    await asyncio.to_thread(archive.extract, blob, file)
    return file
