"""``push``: upload package files to a registry."""

import asyncio
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    from controller.xpkg.image import Blob, PushManifest


async def push(
    first: Annotated[str, Parameter(name="REF")],
    second: Annotated[str | None, Parameter(name="REF", show=False)] = None,
    /,
    *,
    package: Annotated[
        list[str] | None,
        Parameter(name=["--package", "-f", "--package-files"], negative=(), metavar="FILE,…"),
    ] = None,
    oci_annotation: Annotated[
        list[str] | None,
        Parameter(name=["--oci-annotation", "-a"], negative=(), metavar="KEY=VALUE"),
    ] = None,
    media_types: Annotated[Literal["oci", "docker"], Parameter(metavar="oci|docker")] = "oci",
    ca_bundle_path: CaBundle = None,
    insecure_registry: InsecureRegistries = None,
    session: Given,
) -> int:
    """Push a package to a registry, with the credentials of Docker or Podman.

    Several files, or a file with several images, become one package for several platforms. Prints
    the reference with the digest that the registry has it under.

    Args:
        first: where the package goes, with registry, repository and tag; a kind before it
            ("configuration", "function" or "provider") makes sure what the file holds.
        second: the reference, where a kind comes first.
        package: the file, or the folder of an OCI layout; without it the only .xpkg file of the
            current folder; a comma list, repeatable: one file for each platform.
        oci_annotation: an annotation of the image, and of the index where there is one; repeatable.
        media_types: how the manifest calls its parts; "docker" as Crossplane's command line does.
        ca_bundle_path: certificates that registries are trusted by.
        insecure_registry: registries that are spoken to over plain HTTP.
        session: the world outside.

    Returns:
        The exit code.
    """
    kind = kind_named(first).kind if second is not None else None
    text = second if second is not None else first
    reference = push_target(text)
    annotations = annotations_of(oci_annotation or [])
    files = [session.path(file) for file in split_list(package or [])]
    files = files or [find_package(session.folder)]
    options = registry_options(session, ca_bundle_path, insecure_registry)
    with session.progress() as line, ExitStack() as stack:
        line.show(f"reading {', '.join(session.shown(file) for file in files)}")
        work = asyncio.to_thread(open_packages, files, kind, session)
        archives = [stack.enter_context(archive) for archive in await work]
        manifests = manifests_of(archives, annotations, docker=media_types == "docker")
        async with session.registries(options) as client:
            keychain = credentials(session)
            for archive in archives:
                await upload_blobs(archive, reference, client=client, keychain=keychain, line=line)
            for manifest in manifests[:-1]:  # the last one alone is what the tag is for
                await store(reference.with_digest(manifest.digest), manifest, client, keychain)
            digest = await store(reference, manifests[-1], client, keychain)
    session.say(f"{text}@{digest}")
    return DONE


def registry_options(
    session: "Session", ca_bundle: Path | None, insecure: list[str] | None
) -> RegistryOptions:
    """Return how registries are reached, from the flags that all verbs have for it."""
    bundle = ca_bundle or from_environment(session, "CA_BUNDLE_PATH")
    return RegistryOptions(
        ca_bundle=session.path(bundle) if bundle else None,
        insecure=split_list(insecure or []),
        environ=session.environ,
    )


def annotations_of(texts: Iterable[str]) -> dict[str, str]:
    """Return annotations by their names.

    Raises:
        UsageError: one is not written as ``KEY=VALUE``, or given twice with different values.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f'--oci-annotation: expected KEY=VALUE but got "{text}"')
        if found.setdefault(key, value) != value:
            raise UsageError(f'--oci-annotation: "{key}" is given twice with different values')
    return found


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


def open_image(file: Path, session: "Session", *, choice: str = "", called: str = "") -> "Archive":
    """Return an open file that holds an image, all of it checked.

    Args:
        file: an archive or the folder of an OCI layout.
        session: how the file is called in messages.
        choice: which of its images.
        called: how it is called instead.

    Raises:
        CommandError: it cannot be read, or holds no image.
    """
    from controller.xpkg.archive import Archive  # noqa: PLC0415 - reads YAML
    from controller.xpkg.errors import XpkgError  # noqa: PLC0415 - as above

    shown = called or session.shown(file)
    try:
        return Archive(file, choice)
    except OSError as error:
        raise read_failure(error, "cannot read", shown) from error
    except XpkgError as error:
        raise CommandError(f"{shown} is no package: {error}") from error


def open_package(
    file: Path, kind: str | None, session: "Session", *, choice: str = "", called: str = ""
) -> "Archive":
    """Return an open package file that holds a package, of the kind that is asked for.

    Args:
        file: a ``.xpkg`` file.
        kind: None for any.
        session: how the file is called in messages.
        choice: which of its images.
        called: how it is called instead.

    Raises:
        CommandError: it cannot be read, holds no package, or one of another kind.
    """
    from controller.xpkg.errors import XpkgError  # noqa: PLC0415 - reads YAML

    shown = called or session.shown(file)
    with ExitStack() as stack:
        archive = stack.enter_context(open_image(file, session, choice=choice, called=called))
        try:
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


def open_packages(files: Iterable[Path], kind: str | None, session: "Session") -> list["Archive"]:
    """Return every package of some files, open; they are one package for several platforms.

    Raises:
        CommandError: one cannot be read, or they do not belong together.
    """
    from controller.xpkg.archive import images_in  # noqa: PLC0415 - reads YAML
    from controller.xpkg.errors import XpkgError  # noqa: PLC0415 - as above

    with ExitStack() as stack:
        archives: list[Archive] = []
        for file in files:
            shown = session.shown(file)
            try:
                choices = images_in(file)
            except OSError as error:
                raise read_failure(error, "cannot read", shown) from error
            except XpkgError as error:
                raise CommandError(f"{shown} is no package: {error}") from error
            for choice in choices:
                archive = open_package(file, kind, session, choice=choice)
                archives.append(stack.enter_context(archive))
        check_together(archives, session)
        stack.pop_all()
        return archives


def check_together(archives: list["Archive"], session: "Session") -> None:
    """Refuse packages that cannot be one package for several platforms.

    Raises:
        CommandError: they are different packages, or two are for one platform.
    """
    from controller.xpkg.image import platform_text  # noqa: PLC0415 - reads YAML

    platforms: dict[str, str] = {}
    packages: dict[tuple[str, str], str] = {}
    for archive in archives if len(archives) > 1 else ():
        shown = session.shown(archive.path)
        meta = archive.meta()
        packages[meta["kind"], str((meta.get("metadata") or {}).get("name"))] = shown
        platform = platform_text(archive.platform)
        other = platforms.setdefault(platform, shown)
        if other is not shown:
            what = f"are both for {platform}" if platform else "both name no platform"
            raise CommandError(
                f"{other} and {shown} {what}: nobody could tell them apart; push one of them, or "
                "build them with runtime images for different platforms"
            )
    if len(packages) > 1:
        texts = [f"{shown} holds the {kind} {name}" for (kind, name), shown in packages.items()]
        raise CommandError(f"{', '.join(texts)}: push them to a reference each")


def credentials(session: "Session") -> "Keychain":
    """Return the credentials of Docker or Podman, then those of clouds and GitHub's workflows.

    Credential helpers are run.
    """
    from controller.registry.ambient import ambient_keychain  # noqa: PLC0415 - loads HTTP

    home = Path(session.environ.get("HOME") or Path.home())
    return ambient_keychain(session.environ, home, helpers=True, github=True)


def manifests_of(
    archives: Iterable["Archive"], annotations: Mapping[str, str], *, docker: bool
) -> list["PushManifest"]:
    """Return the manifest of each image as it is pushed, and after several their index."""
    from controller.xpkg.image import annotated, push_index  # noqa: PLC0415 - reads YAML

    images = [
        (annotated(archive.manifest(docker=docker), annotations), archive.platform)
        for archive in archives
    ]
    manifests = [manifest for manifest, _ in images]
    if len(images) > 1:
        manifests.append(annotated(push_index(images, docker=docker), annotations))
    return manifests


async def store(
    reference: "Reference", manifest: "PushManifest", client: "RegistryClient", keychain: "Keychain"
) -> str:
    """Store a manifest or index whose parts are in the registry; return its digest."""
    return await client.push_manifest(reference, manifest.raw, manifest.media_type, keychain)


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
    await upload_blobs(archive, reference, client=client, keychain=keychain, line=line)
    return await store(reference, archive.manifest(), client, keychain)


async def upload_blobs(
    archive: "Archive",
    reference: "Reference",
    *,
    client: "RegistryClient",
    keychain: "Keychain",
    line: "Progress",
) -> None:
    """Store what is missing of an image's blobs in a repository.

    Raises:
        RegistryError: the registry did not take one.
    """
    with tempfile.TemporaryDirectory(prefix="crossdock-") as scratch:
        for number, blob in enumerate(archive.blobs, start=1):
            part = f"part {number} of {len(archive.blobs)}, {size(blob.size)}"
            line.show(f"pushing {reference}: {part}")
            content = await _content(archive, blob, Path(scratch))
            await client.push_blob(reference, content, keychain, media_type=blob.media_type)


async def _content(archive: "Archive", blob: "Blob", scratch: Path) -> bytes | Path:
    """Return what is sent of a blob: the configuration from memory, a layer from a file."""
    if blob.digest == archive.config.digest:
        return archive.config_raw
    file = scratch / "layer"
    await asyncio.to_thread(archive.extract, blob, file)
    return file
