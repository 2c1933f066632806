"""Small packages for tests of the cache."""

from controller.registry.cache import CacheKey, Facts
from controller.registry.cached import CachedPackage
from controller.registry.staging import Staging

REPOSITORY = "reg.io/acme/demo"


def key_of(number: int = 1, repository: str = REPOSITORY) -> CacheKey:
    return CacheKey(repository, f"sha256:{number:064x}")


def fill(staging: Staging, number: int = 1, size: int = 3) -> None:
    """Write both forms of a package whose content depends on its number."""
    staging.layer.write_bytes(b"layer")
    staging.stream.write_bytes(b"---\nnumber: %d\n" % number * size)
    staging.objects.write_bytes(b'{"number":%d}\n' % number * size)


def facts_of(number: int = 1) -> Facts:
    return Facts(
        meta={"kind": "Provider", "metadata": {"name": f"p{number}"}},
        selected_digest=f"sha256:{number:064x}",
        layer_digest=f"sha256:{'b' * 64}",
        layer_size=5,
        manifest=b'{"schemaVersion":2}\xff',
        details={"parser": 1, "warnings": []},
    )


def check(package: CachedPackage, number: int = 1, size: int = 3) -> None:
    """Compare everything about an open package with what ``fill`` and ``facts_of`` wrote."""
    assert package.record.facts == facts_of(number)
    assert list(package.objects()) == [b'{"number":%d}' % number] * size
    assert package.open_stream().read() == b"---\nnumber: %d\n" % number * size


async def store(cache, number: int = 1, *, repository: str = REPOSITORY, size: int = 3) -> CacheKey:
    """Store a package and return its key."""
    key = key_of(number, repository)
    async with cache.ingest() as staging:
        fill(staging, number, size)
        async with await cache.store(key, staging, facts_of(number)) as package:
            check(package, number, size)
    return key
