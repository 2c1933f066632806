"""Bringing packages into a cache: from an export, or from flat files that say little of themselves.

Archives are unpacked by names that are checked, never by those of their entries alone.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from controller.cli.session import CommandError, Session
from controller.model.content import to_details
from controller.model.manifest import ManifestError
from controller.registry.cache_disk import DiskCache
from controller.registry.cache_files import DamagedEntry
from controller.registry.cache_seed import seed_name, unpack_seed
from controller.registry.cache_transfer import EXPORTED, FILE_BYTES_MAX, Fault, copy_packages
from controller.registry.cached import CacheKey, Facts
from controller.registry.failures import LimitExceeded, RegistryError
from controller.registry.ledger import PINNED
from controller.registry.reference import parse_reference
from controller.registry.shelves import VERSION
from controller.xpkg.compression import Reader
from controller.xpkg.errors import XpkgError
from controller.xpkg.parse import parse_in_process
from controller.xpkg.tar import TarReader, shown_name

EXPORT_BYTES_MAX: Final = 64 * 2**30


class Importer:
    """Takes packages into one cache.

    Args:
        cache: takes them.
        named: references with digests, of what flat files hold.
        session: shows progress.

    Attributes:
        done: what was imported.
        faults: what is damaged.
    """

    def __init__(self, cache: DiskCache, named: Sequence[str], session: Session) -> None:
        self.done: list[CacheKey] = []
        self.faults: list[Fault] = []
        self._cache = cache
        self._session = session
        self._flat = {seed_name(key.repository, key.digest): key for key in map(key_of, named)}

    async def take(self, source: Path) -> None:
        """Import everything of a folder, an archive or a flat file.

        Raises:
            CommandError: it is none of these, or a flat file that no reference fits.
            CacheUnavailable: the cache cannot keep it.
        """
        export, flat = await asyncio.to_thread(contents_of, source)
        if export is not None and export.is_dir():
            await self._copy(export)
        elif export is not None:
            with tempfile.TemporaryDirectory() as place:
                await asyncio.to_thread(unpack, export, Path(place))
                await self._copy(Path(place))
        for path in flat:
            await self._take_flat(path)

    async def _copy(self, folder: Path) -> None:
        done, faults = await copy_packages(folder, self._cache, pin=True)
        self.done += done
        self.faults += faults

    async def _take_flat(self, path: Path) -> None:
        key = self._flat.get(path.name)
        if key is None:
            raise CommandError(
                f"{path}: what it holds cannot be told from its name: say it with --package "
                "REF@DIGEST; the first digits of the digest and the repository have to fit the name"
            )
        async with self._cache.ingest() as staging:
            try:
                await asyncio.to_thread(_unpack_flat, path, staging.stream)
                parsed = await parse_in_process(staging.stream, staging.objects, source=path.name)
            except (DamagedEntry, LimitExceeded, ManifestError, XpkgError) as error:
                self.faults.append(Fault(str(path), str(error)))
                return
            details = {**to_details(parsed), "importedFrom": path.name}
            facts = Facts(meta=parsed.meta, selected_digest=key.digest, details=details)
            (await self._cache.store(key, staging, facts)).close()
        await self._cache.lease(PINNED, key)
        self.done.append(key)


def contents_of(source: Path) -> tuple[Path | None, list[Path]]:
    """Return the export that a path means, None when it is none, and the flat files. Blocks.

    Raises:
        CommandError: there is nothing to import.
    """
    if not source.exists():
        raise CommandError(f"{source} does not exist")
    if source.is_dir():
        flat = sorted(path for path in source.glob("*.gz") if path.is_file())
        if not flat and not (source / VERSION).is_dir():
            raise CommandError(f"{source} holds neither an export nor flat .gz files")
        return (source if (source / VERSION).is_dir() else None), flat
    if source.suffix == ".gz" and not source.name.endswith(".tar.gz"):
        return None, [source]
    return source, []


def key_of(text: str) -> CacheKey:
    """Return the package that a reference with a digest names.

    Raises:
        CommandError: it is no such reference.
    """
    try:
        reference = parse_reference(text)
    except RegistryError as error:
        raise CommandError(f"--package: {error}") from error
    if reference.digest is None:
        raise CommandError(f"--package: {text} has no digest: REPOSITORY@sha256:… is needed")
    return CacheKey(reference.source, reference.digest)


def _unpack_flat(path: Path, target: Path) -> None:
    with target.open("xb") as out:
        unpack_seed(path, out)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an exported archive, gzipped or not, into an empty folder. Blocks.

    Raises:
        CommandError: it is no export.
    """
    try:
        with archive.open("rb") as stream:
            plain = Reader(stream, budget=EXPORT_BYTES_MAX, limit=f"{EXPORT_BYTES_MAX} bytes")
            reader = TarReader(plain)
            for entry in reader:
                name, shown = entry.name.decode("utf-8", "replace"), shown_name(entry.name)
                if not entry.is_file or EXPORTED.fullmatch(name) is None:
                    raise CommandError(f"{archive} is no export of a cache: it holds {shown}")
                if entry.size > FILE_BYTES_MAX:
                    raise CommandError(f"{archive}: {shown} is larger than {FILE_BYTES_MAX} bytes")
                path = folder / name
                if path.exists():
                    raise CommandError(f"{archive} is no export of a cache: {shown} is in it twice")
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as out:
                    out.writelines(reader.chunks())
    except XpkgError as error:
        raise CommandError(f"{archive} is no export of a cache: {error}") from error
