"""The measured process of `pull-many`, and the registry that it pulls from.

``python -m tests.bench.pullmany bare|crossdock COUNT`` starts the registry in another process,
pulls from it and prints one line of JSON; ``… serve COUNT`` is that registry.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from controller.registry.client import RegistryClient
from controller.registry.credentials import Keychain
from controller.registry.media import ACCEPT
from controller.registry.reference import parse_reference
from tests.bench.process import peak_mib
from tests.fakes.registry import FakeRegistry, Reply, Request, bearer, serve

LAYER_BYTES = 20_000
CONNECTIONS = 16
ANONYMOUS = Keychain.anonymous()


def name_of(number: int) -> str:
    """Return the repository of one package."""
    return f"many/package-{number}"


async def serve_packages(count: int) -> None:
    """Serve many packages, each only to those with a token for it, until standard input ends."""
    fake = FakeRegistry()
    for number in range(count):
        fake.add_image(name_of(number), os.urandom(LAYER_BYTES))
    tokens: Counter[str] = Counter()

    async def answer(request: Request) -> Reply:
        parts = urlsplit(request.target)
        if parts.path == "/statistics":
            found = {
                "connections": server.connections,
                "most_at_once": server.most_open,
                "token_requests": sum(tokens.values()),
                "tokens_asked_twice": sum(1 for asked in tokens.values() if asked > 1),
                "requests": len(server.requests) - 1,
            }
            return Reply(200, body=json.dumps(found).encode())
        if parts.path == "/token":
            scope = parse_qs(parts.query)["scope"][0]
            tokens[scope] += 1
            token = {"token": f"token-for-{scope}", "expires_in": 300}
            return Reply(200, (("Content-Type", "application/json"),), json.dumps(token).encode())
        repository = "/".join(parts.path.split("/")[2:4])
        scope = f"repository:{repository}:pull"
        if request.authorization == f"Bearer token-for-{scope}":
            return await fake(request)
        return bearer(f"http://{server.address}/token", scope)

    async with serve(answer) as server:
        print(server.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)


@contextlib.contextmanager
def registry(count: int) -> Iterator[str]:
    """Run the registry in another process; yield its address."""
    command = [sys.executable, "-m", "tests.bench.pullmany", "serve", str(count)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        yield child.stdout.readline().strip()
        child.stdin.close()


async def pull_bare(address: str, count: int, folder: Path) -> None:
    """Pull with nothing but an HTTP client: the same requests, and the same digests compared."""
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    url = f"http://{address}"

    async def one(client: httpx.AsyncClient, number: int) -> None:
        repository = f"{url}/v2/{name_of(number)}"
        scope = f"repository:{name_of(number)}:pull"
        answer = await client.get(f"{url}/token", params={"service": "fake", "scope": scope})
        headers = {"Authorization": f"Bearer {answer.json()['token']}", "Accept": ACCEPT}
        head = await client.head(f"{repository}/manifests/v1", headers=headers)
        digest = head.headers["Docker-Content-Digest"]
        manifest = await client.get(f"{repository}/manifests/{digest}", headers=headers)
        check(manifest.content, digest)
        for layer in manifest.json()["layers"]:
            blob = await client.get(f"{repository}/blobs/{layer['digest']}", headers=headers)
            check(blob.content, layer["digest"])
            await asyncio.to_thread((folder / str(number)).write_bytes, blob.content)

    async with (
        httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(60, pool=None)) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(count):
            tasks.create_task(one(client, number))


def check(content: bytes, digest: str) -> None:
    """Compare content with its digest."""
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
        raise SystemExit("the content is another")


async def pull_crossdock(address: str, count: int, folder: Path) -> None:
    """Pull with the client of this project."""

    async def one(client: RegistryClient, number: int) -> None:
        reference = parse_reference(f"{address}/{name_of(number)}:v1")
        digest = await client.resolve(reference, ANONYMOUS)
        manifest = await client.manifest(reference, digest, ANONYMOUS)
        for layer in manifest.layers:
            await client.download(reference, layer, ANONYMOUS, folder / str(number))

    async with (
        RegistryClient(user_agent="crossdock/bench") as client,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(count):
            tasks.create_task(one(client, number))


def main(arguments: list[str]) -> int:
    """Serve, or measure one client and print it."""
    mode, count = arguments[0], int(arguments[1])
    if mode == "serve":
        asyncio.run(serve_packages(count))
        return 0
    work = pull_bare if mode == "bare" else pull_crossdock
    with (
        tempfile.TemporaryDirectory(prefix="crossdock-bench-") as place,
        registry(count) as address,
    ):
        before = resource.getrusage(resource.RUSAGE_SELF)
        begun = time.perf_counter()
        asyncio.run(work(address, count, Path(place)))
        seconds = time.perf_counter() - begun
        after = resource.getrusage(resource.RUSAGE_SELF)
        statistics = httpx.get(f"http://{address}/statistics").json()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found: dict[str, Any] = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_mib": peak_mib(os.getpid()),
    }
    print(json.dumps(found | statistics))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
