"""The measured process of `pull-large`: pulls one package, or reads it from the cache.

``python -m tests.bench.pulling base|pull|cached [REFERENCE CACHE]`` does its work once and prints
one line of JSON. ``base`` only imports what the other two use.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from controller.model.content import to_details
from controller.registry.cache_disk import DiskCache
from controller.registry.cached import CacheKey, Facts
from controller.registry.client import RegistryClient
from controller.registry.credentials import Keychain
from controller.registry.media import Manifest
from controller.registry.reference import Reference, parse_reference
from controller.registry.staging import Staging
from controller.xpkg.locate import Search
from controller.xpkg.parse import parse_in_process
from tests.bench.process import peak_mib

TICK = 0.005  # seconds between two looks at the event loop
ANONYMOUS = Keychain.anonymous()


async def pull(reference: Reference, cache: DiskCache) -> int:
    """Fetch, verify, parse and store a package, as the manager does; return how many objects."""
    async with RegistryClient(user_agent="crossdock/bench") as client:
        digest = await client.resolve(reference, ANONYMOUS)
        manifest = await client.manifest(reference, digest, ANONYMOUS)
        async with cache.ingest() as staging:
            layer = await extract(client, reference, manifest, staging)
            parsed = await parse_in_process(staging.stream, staging.objects)
            facts = Facts(
                meta=parsed.meta,
                selected_digest=manifest.descriptor.digest,
                layer_digest=layer[0],
                layer_size=layer[1],
                manifest=manifest.raw,
                details=to_details(parsed),
            )
            async with await cache.store(CacheKey(reference.source, digest), staging, facts):
                return len(parsed.entries)


async def extract(
    client: RegistryClient, reference: Reference, manifest: Manifest, staging: Staging
) -> tuple[str, int]:
    """Put package.yaml into the staging folder; return digest and size of its layer."""
    search = Search(manifest.layers)
    for layer in search.layers:
        await client.download(reference, layer, ANONYMOUS, staging.layer)
        found = await asyncio.to_thread(search.read, layer, staging.layer, staging.stream)
        await asyncio.to_thread(staging.layer.unlink)
        if found is not None:
            return layer.digest, layer.size
    raise search.missing()


async def read_cached(reference: Reference, digest: str, cache: DiskCache) -> int:
    """Read every object of a package that is in the cache; return how many lines."""
    package = await cache.get(CacheKey(reference.source, digest))
    if package is None:
        raise SystemExit("the package is not in the cache")
    count = 0
    async with package:
        async for batch in package.batches():
            count += len(batch)
    return count


async def with_lag(work: Callable[[], Awaitable[int]]) -> tuple[int, list[float]]:
    """Do some work; return its result and by how much the event loop came late, seconds."""
    late: list[float] = []

    async def watch() -> None:
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(TICK)
            late.append(time.perf_counter() - begun - TICK)

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch())
        result = await work()
        watching.cancel()
    return result, sorted(late)


def cpu_seconds() -> float:
    """Return CPU time of this process and of those that it started and that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


async def measured(mode: str, text: str, folder: Path) -> dict[str, Any]:
    """Do the work; return what it cost."""
    reference = parse_reference(text)
    async with DiskCache(folder) as cache:
        cpu, clock = cpu_seconds(), time.perf_counter()
        if mode == "pull":
            count, late = await with_lag(lambda: pull(reference, cache))
        else:
            digest = str(reference.digest)
            count, late = await with_lag(lambda: read_cached(reference, digest, cache))
        return {
            "objects": count,
            "seconds": time.perf_counter() - clock,
            "cpu_seconds": cpu_seconds() - cpu,
            "lag_p99_ms": late[int(len(late) * 0.99)] * 1000 if late else 0.0,
            "lag_max_ms": late[-1] * 1000 if late else 0.0,
        }


def main(arguments: list[str]) -> int:
    """Measure one kind of work and print it."""
    mode, *rest = arguments
    found = asyncio.run(measured(mode, rest[0], Path(rest[1]))) if mode != "base" else {}
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    peak = peak_mib(os.getpid())
    print(json.dumps(found | {"peak_mib": peak, "worker_peak_mib": worker}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
