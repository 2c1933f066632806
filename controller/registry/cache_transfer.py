"""What people do with a cache folder while others use it: look into it, check it, copy it."""

from __future__ import annotations

import asyncio
import io
import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controller.registry.cache_disk import DiskCache
from controller.registry.cache_files import DamagedEntry, OtherVersion
from controller.registry.cache_scan import scan
from controller.registry.cached import CacheKey, Record
from controller.registry.ledger import PINNED
from controller.registry.shelves import VERSION, Shelves

EXPORTED: Final = re.compile(
    rf"{VERSION}/(?:records/[0-9a-f]{{64}}/[a-z0-9]{{1,16}}-[0-9a-f]{{32,128}}\.json"
    r"|content/[0-9a-f]{2}/[0-9a-f]{64})",
    re.ASCII,
)
FILE_BYTES_MAX: Final = 2**30  # of one file of an export


@dataclass(frozen=True, slots=True)
class Listed:
    """One package of a cache folder.

    Attributes:
        owners: who needs it.
        used: seconds since the epoch of its last use.
    """

    record: Record
    owners: tuple[str, ...]
    used: float

    @property
    def size(self) -> int:
        """Its bytes in the folder, shared or not."""
        return self.record.stream.stored_size + self.record.objects.stored_size


@dataclass(frozen=True, slots=True)
class Fault:
    """An entry of a cache folder that is not what was stored."""

    name: str
    cause: str


def packages(root: Path) -> tuple[list[Listed], list[Fault]]:
    """Return the packages of a cache folder by name, and what cannot be read. Blocks.

    Args:
        root: the cache folder; nothing in it is changed.
    """
    shelves, found, faults = Shelves(root), scan(root / VERSION), []
    listed = []
    for held in sorted(found.held, key=lambda item: str(item.key)):
        owners = sorted(owner for owner, keys in found.leases.items() if held.key in keys)
        try:
            listed.append(Listed(shelves.record(held.key), tuple(owners), held.used))
        except FileNotFoundError:
            continue  # removed meanwhile
        except (DamagedEntry, OtherVersion, OSError) as error:
            faults.append(Fault(str(held.key), str(error)))
    for path in found.broken:
        name, cause = _about(shelves, path)
        faults.append(Fault(name, cause))
    return listed, faults


def _about(shelves: Shelves, path: Path) -> tuple[str, str]:
    """Return the name of a broken entry, and what is wrong with it."""
    try:
        key = Record.decode(path.read_bytes()).key
        shelves.read(key).close()
    except DamagedEntry as error:
        try:
            return str(Record.decode(path.read_bytes()).key), str(error)
        except (DamagedEntry, OtherVersion, OSError):
            return str(path.relative_to(shelves.root)), str(error)
    except (OtherVersion, OSError) as error:
        return str(path.relative_to(shelves.root)), str(error)
    return str(path.relative_to(shelves.root)), "the record has another package's name"


def verify(root: Path) -> Iterator[Fault | None]:
    """Compare all bytes of a cache folder with what was stored. Blocks.

    Yields:
        One value for each entry: what is wrong with it, None when nothing is.
    """
    shelves = Shelves(root)
    listed, faults = packages(root)
    yield from faults
    for package in listed:
        try:
            shelves.read(package.record.key).close()
        except FileNotFoundError:
            continue
        except (DamagedEntry, OtherVersion, OSError) as error:
            yield Fault(str(package.record.key), str(error))
        else:
            yield None


async def copy_packages(
    root: Path, target: DiskCache, *, keys: Collection[CacheKey] | None = None, pin: bool
) -> tuple[list[CacheKey], list[Fault]]:
    """Copy packages from a cache folder into another cache; every byte is compared on its way.

    Args:
        root: the folder they are in.
        target: the other cache.
        keys: which; None for all.
        pin: keep them in the other cache until a person removes them.

    Returns:
        What was copied, and what is damaged.

    Raises:
        CacheUnavailable: the other cache cannot keep one.
    """
    shelves, copied = Shelves(root), []
    listed, faults = await asyncio.to_thread(packages, root)
    for record in (package.record for package in listed):
        if keys is not None and record.key not in keys:
            continue
        try:
            package = await asyncio.to_thread(shelves.read, record.key)
        except FileNotFoundError:
            continue
        except (DamagedEntry, OtherVersion, OSError) as error:
            faults.append(Fault(str(record.key), str(error)))
            continue
        package.close()
        await target.adopt(
            record, [shelves.content_path(c) for c in (record.stream, record.objects)]
        )
        if pin:
            await target.lease(PINNED, record.key)
        copied.append(record.key)
    return copied, faults


def write_tar(
    root: Path, target: Path, keys: Collection[CacheKey] | None = None
) -> tuple[list[CacheKey], list[Fault]]:
    """Write packages of a cache folder into an archive, which appears when it is whole. Blocks.

    Args:
        root: the folder.
        target: the archive; replaced when it exists.
        keys: which; None for all.

    Raises:
        OSError: it cannot be written.
    """
    shelves, written, names = Shelves(root), [], set[str]()
    listed, faults = packages(root)
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("xb") as out, tarfile.open(fileobj=out, mode="w") as archive:
            for record in (package.record for package in listed):
                if keys is not None and record.key not in keys:
                    continue
                try:
                    _add(archive, shelves, record, names)
                except (FileNotFoundError, DamagedEntry) as error:
                    faults.append(Fault(str(record.key), str(error)))
                    continue
                written.append(record.key)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return written, faults


def _add(archive: tarfile.TarFile, shelves: Shelves, record: Record, names: set[str]) -> None:
    contents = {c.stored_sha256: c for c in (record.stream, record.objects)}
    for name, content in contents.items():
        with shelves.open_content(content) as file:
            if name not in names:
                path = shelves.content_path(content).relative_to(shelves.root)
                info = tarfile.TarInfo(path.as_posix())
                info.size = content.stored_size
                archive.addfile(info, file)
                names.add(name)
    raw = record.encode()
    info = tarfile.TarInfo(shelves.record_path(record.key).relative_to(shelves.root).as_posix())
    info.size = len(raw)
    archive.addfile(info, io.BytesIO(raw))
