"""``cache``: look into the manager's package cache, check it, and carry packages to other clusters.

All of it works while a manager uses the folder.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import orjson
from cyclopts import Parameter

from controller.cli.flags import Given, Output, Switch, from_environment
from controller.cli.names import duration, quantity
from controller.cli.output import print_document
from controller.cli.render import MISSING, age, counted, size, table
from controller.cli.session import DONE, CommandError, Session, UsageError

if TYPE_CHECKING:
    from controller.registry.cache_transfer import Fault, Listed
    from controller.registry.cached import CacheKey
    from controller.registry.ledger import Ledger

CacheDir: TypeAlias = Annotated[
    Path | None,
    Parameter(
        name=["--cache-dir", "--xpkg-cache-dir", "-c"],
        metavar="FOLDER",
        help="the manager's cache folder [XPKG_CACHE_DIR, CACHE_DIR; /cache/xpkg]",
    ),
]
DEFAULT_CACHE_DIR: Final = "/cache/xpkg"
COLUMNS: Final = ("PACKAGE", "DIGEST", "KIND", "SIZE", "NEEDED BY", "USED")
WIDE_COLUMNS: Final = (*COLUMNS, "NAME", "PLAIN", "OBJECTS", "LAYER")
FORMATS: Final = ("default", "wide", "json", "yaml")
SHOWN_HEX: Final = len("sha256:") + 12
REMEDY: Final = (
    "the manager fetches it again at its next use; where it cannot, import it from an export"
)


def ls(*, cache_dir: CacheDir = None, output: Output = "default", session: Given) -> int:
    """List the packages in a cache folder.

    Args:
        cache_dir: the folder.
        output: "default", "wide" (with names, plain sizes and layers), "json" or "yaml".
        session: the world outside.

    Returns:
        The exit code.
    """
    if output not in FORMATS:
        words = ", ".join(f'"{word}"' for word in FORMATS)
        raise UsageError(f'--output: expected one of {words} but got "{output}"')
    root = folder(cache_dir, session)
    from controller.registry.cache_transfer import packages  # noqa: PLC0415 - takes 0.1 s

    listed, faults = packages(root)
    if output in {"json", "yaml"}:
        print_items(session, [document(package) for package in listed], output)
    elif not listed:
        session.note(f"No packages are in {session.shown(root)}.")
    else:
        columns = WIDE_COLUMNS if output == "wide" else COLUMNS
        rows = [row(package, session.now(), wide=output == "wide") for package in listed]
        for line in table(columns, rows):
            session.say(line)
    for fault in faults:
        session.note(f"warning: {fault.name} is damaged: {fault.cause}")
    return DONE


def verify(*, cache_dir: CacheDir = None, session: Given) -> int:
    """Compare every byte of a cache folder with what was stored. Nothing is changed.

    Args:
        cache_dir: the folder.
        session: the world outside.

    Returns:
        The exit code, 1 when something is damaged.
    """
    root = folder(cache_dir, session)
    from controller.registry import cache_transfer  # noqa: PLC0415 - takes 0.1 s

    whole, faults = 0, []
    with session.progress() as line:
        for number, fault in enumerate(cache_transfer.verify(root), 1):
            line.show(f"checked {counted(number, 'package')}")
            if fault is None:
                whole += 1
            else:
                faults.append(fault)
    session.say(f"{counted(whole, 'package')} whole, {len(faults)} damaged")
    report(faults)
    return DONE


async def prune(
    *,
    cache_dir: CacheDir = None,
    older_than: Annotated[str | None, Parameter(metavar="DURATION")] = None,
    max_bytes: Annotated[str | None, Parameter(metavar="SIZE")] = None,
    all_: Annotated[Switch, Parameter(name="--all")] = False,
    dry_run: Switch = False,
    session: Given,
) -> int:
    """Remove packages that no installed revision needs.

    Args:
        cache_dir: the folder.
        older_than: those that nobody used for so long, for example 24h.
        max_bytes: the least recently used, until the rest takes at most so much, for example 20Mi.
        all_: all of them, imported ones too, and what is damaged.
        dry_run: only tell which.
        session: the world outside.

    Returns:
        The exit code.
    """
    if older_than is None and max_bytes is None and not all_:
        raise UsageError("say what to remove: --older-than, --max-bytes or --all")
    wanted = Wanted(
        before=None if older_than is None else session.now().timestamp() - duration(older_than),
        limit=None if max_bytes is None else quantity(max_bytes, "--max-bytes"),
        everything=all_,
    )
    root = writable(cache_dir, session)
    from controller.registry.cache_disk import DiskCache  # noqa: PLC0415 - takes 0.1 s

    async with DiskCache(root) as cache:
        before = cache.statistics().size
        keys = await cache.prune(wanted.choose, dry_run=dry_run)
        if all_ and not dry_run:
            await cache.forget_damaged()
        freed = before - cache.statistics().size
    for key in keys:
        session.say(f"{key} {'would be removed' if dry_run else 'removed'}")
    if not dry_run:
        session.note(f"{counted(len(keys), 'package')} removed, {size(freed)} freed")
    return DONE


class Wanted:
    """Which packages a person wants to be rid of."""

    def __init__(self, *, before: float | None, limit: int | None, everything: bool) -> None:
        self._before = before
        self._limit = limit
        self._everything = everything

    def choose(self, ledger: Ledger) -> list[CacheKey]:
        """Return those among the packages that no revision needs."""
        from controller.registry.ledger import PINNED  # noqa: PLC0415 - takes 0.1 s

        if self._everything:
            needed = {k for o in ledger.owners() if o != PINNED for k in ledger.keys_of(o)}
            return [held.key for held in ledger.held() if held.key not in needed]
        chosen = [] if self._before is None else ledger.unused_since(self._before)
        if self._limit is not None:
            more = ledger.victims(None, self._limit)
            chosen += ledger.unleased() if more is None else more
        return list(dict.fromkeys(chosen))


async def export(
    target: Annotated[Path, Parameter(name="TARGET")],
    names: Annotated[list[str] | None, Parameter(name="PACKAGE")] = None,
    /,
    *,
    cache_dir: CacheDir = None,
    session: Given,
) -> int:
    """Copy packages out of a cache, for a cluster without registries.

    A folder can be used as that cluster's cache as it is, read-only too; an archive or a folder can
    be brought into one with "cache import".

    Args:
        target: a folder (made where it is missing), or an archive: a name that ends in .tar.
        names: which packages: repository, or repository@digest; without any, all.
        cache_dir: the folder they are in.
        session: the world outside.

    Returns:
        The exit code, 1 when a package is damaged.
    """
    root, place = folder(cache_dir, session), session.path(target)
    from controller.registry import cache_transfer  # noqa: PLC0415 - takes 0.1 s
    from controller.registry.cache_disk import DiskCache  # noqa: PLC0415 - as above

    listed, _ = cache_transfer.packages(root)
    keys = selected([package.record.key for package in listed], names or [])
    if place.suffix == ".tar":
        done, faults = cache_transfer.write_tar(root, place, keys)
    else:
        place.mkdir(exist_ok=True)
        async with DiskCache(place) as cache:
            done, faults = await cache_transfer.copy_packages(root, cache, keys=keys, pin=True)
    for key in done:
        session.say(str(key))
    session.note(f"{counted(len(done), 'package')} exported to {session.shown(place)}")
    report(faults)
    return DONE


async def import_(
    sources: Annotated[list[Path], Parameter(name="SOURCE")],
    /,
    *,
    package: Annotated[
        list[str] | None, Parameter(name="--package", metavar="REF@DIGEST", negative=())
    ] = None,
    cache_dir: CacheDir = None,
    session: Given,
) -> int:
    """Bring packages into a cache; they stay until "cache prune --all" removes them.

    Args:
        sources: exported folders or archives, or flat .gz files (a gzipped package.yaml each) and
            folders of them.
        package: what a flat file holds, since its name does not say it: the package's reference
            with its digest; repeatable. The name has to fit, but nothing proves the content.
        cache_dir: the folder they go to.
        session: the world outside.

    Returns:
        The exit code, 1 when a package is damaged.
    """
    root = writable(cache_dir, session)
    from controller.cli.cacheimport import Importer  # noqa: PLC0415 - takes 0.2 s
    from controller.registry.cache_disk import DiskCache  # noqa: PLC0415 - as above

    async with DiskCache(root) as cache:
        importer = Importer(cache, package or [], session)
        for source in sources:
            await importer.take(session.path(source))
    for key in importer.done:
        session.say(f"{key} imported")
    report(importer.faults)
    return DONE


def folder(given: Path | None, session: Session) -> Path:
    """Return the cache folder; it can be read.

    Raises:
        CommandError: it cannot.
    """
    from controller.registry.cache_files import check_directory  # noqa: PLC0415 - takes 0.1 s

    named = given or from_environment(session, "XPKG_CACHE_DIR", "CACHE_DIR")
    root = session.path(named or DEFAULT_CACHE_DIR)
    fault = check_directory(root)
    if fault is not None:
        raise CommandError(f"{fault}; --cache-dir names the folder")
    return root


def writable(given: Path | None, session: Session) -> Path:
    """Return the cache folder; it can be written.

    Raises:
        CommandError: it cannot.
    """
    from controller.registry.cache_files import probe  # noqa: PLC0415 - takes 0.1 s

    root = folder(given, session)
    fault = probe(root)
    if fault is not None:
        raise CommandError(f"cache folder {root} cannot be written: {fault.strerror}")
    return root


def report(faults: list[Fault]) -> None:
    """Fail when something is damaged; the text names each entry and the remedy."""
    if not faults:
        return
    lines = [f"{fault.name}: {fault.cause}" for fault in faults]
    raise CommandError("\n  ".join([f"{counted(len(faults), 'package')} damaged:", *lines, REMEDY]))


def selected(keys: list[CacheKey], names: list[str]) -> list[CacheKey]:
    """Return the packages that names mean.

    Raises:
        CommandError: a name means none.
    """
    if not names:
        return keys
    for name in names:
        if not any(name in {key.repository, str(key)} for key in keys):
            raise CommandError(f"{name} is not in the cache: 'cache ls' shows what is")
    return [key for key in keys if {key.repository, str(key)} & set(names)]


def row(package: Listed, now: datetime, *, wide: bool) -> tuple[str, ...]:
    """Return the cells of a package."""
    record = package.record
    meta = record.facts.meta
    cells = (
        record.key.repository,
        record.key.digest if wide else record.key.digest[:SHOWN_HEX],
        meta.get("kind") or MISSING,
        size(package.size),
        ", ".join(package.owners) if wide else needed_by(package),
        age(_stamp(package.used), now),
    )
    if not wide:
        return cells
    name = (meta.get("metadata") or {}).get("name") or MISSING
    plain, objects = size(record.stream.size), size(record.objects.size)
    return (*cells, name, plain, objects, record.facts.layer_digest or MISSING)


def needed_by(package: Listed) -> str:
    """Return who needs a package, in short."""
    from controller.registry.ledger import PINNED  # noqa: PLC0415 - takes 0.1 s

    count = sum(owner != PINNED for owner in package.owners)
    words = [counted(count, "revision")] if count else []
    words += ["import"] if PINNED in package.owners else []
    return ", ".join(words) or MISSING


def document(package: Listed) -> dict[str, Any]:
    """Return a package as an item of ``-o json``."""
    record = package.record
    return {
        "repository": record.key.repository,
        "digest": record.key.digest,
        "kind": record.facts.meta.get("kind"),
        "name": (record.facts.meta.get("metadata") or {}).get("name"),
        "size": package.size,
        "streamSha256": record.stream.sha256,
        "streamSize": record.stream.size,
        "layerDigest": record.facts.layer_digest,
        "owners": list(package.owners),
        "lastUsed": _stamp(package.used),
        "verified": record.facts.verified,
    }


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def print_items(session: Session, items: list[dict[str, Any]], output: str) -> None:
    """Print packages as JSON or YAML."""
    if output == "json":
        print_document(session, {"items": items})
        return
    session.say("items:" if items else "items: []")
    for item in items:
        # A JSON value is a YAML value too.
        lines = [f"{name}: {orjson.dumps(value).decode()}" for name, value in item.items()]
        session.say("- " + "\n  ".join(lines))
