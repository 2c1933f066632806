import asyncio
import dataclasses
import errno
import gzip
import hashlib
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.registry.client import RegistryClient
from controller.registry.download import BlobWriter, Pace, blob_seconds
from controller.registry.failures import (
    IntegrityError,
    LimitExceeded,
    NotFound,
    PolicyViolation,
    RegistryError,
    RegistryUnavailable,
    StorageError,
)
from controller.registry.media import Descriptor
from controller.registry.reference import parse_reference
from controller.registry.wire import Limits
from tests.fakes.registry import FakeRegistry, Reply, basic, digest_of, serve
from tests.registry.conftest import ANONYMOUS, QUICK, connected, keychain
from tests.registry.test_tokens import ALICE

CONTENT = random.Random(1).randbytes(300_000)


@pytest.fixture
def blob(fake):
    return Descriptor("application/x", fake.add_blob(CONTENT), len(CONTENT))


@pytest.fixture
def target(tmp_path):
    return tmp_path / "layer"


async def test_the_file_has_exactly_the_bytes(fake, server, client, image, blob, target):
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["layer"]
    assert server.seen == [f"GET /v2/acme/demo/blobs/{blob.digest}"]


async def test_a_file_that_was_there_is_replaced(client, image, blob, target):
    target.write_text("old")
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == CONTENT


async def test_nothing_is_asked_for_an_empty_blob(server, client, image, target):
    await client.download(image, Descriptor("x", digest_of(b""), 0), ANONYMOUS, target)
    assert target.read_bytes() == b""
    target.unlink()
    with pytest.raises(IntegrityError):
        await client.download(image, Descriptor("x", digest_of(b"x"), 0), ANONYMOUS, target)
    assert not list(target.parent.iterdir())
    assert server.connections == 0


def flipped(_request: object, reply: Reply) -> Reply:
    body = bytearray(reply.body)
    body[len(body) // 2] ^= 1
    return dataclasses.replace(reply, body=bytes(body))


async def test_t7_other_bytes_of_the_right_length_leave_no_file(
    fake, server, client, image, blob, target
):
    fake.on("GET", "blobs", flipped)
    with pytest.raises(IntegrityError, match=r"does not match its digest.*after 2 attempts"):
        await client.download(image, blob, ANONYMOUS, target)
    assert not list(target.parent.iterdir())
    assert len(server.requests) == 2


async def test_a_damaged_transfer_is_repeated_once(fake, client, image, blob, target):
    fake.on("GET", "blobs", flipped, times=1)
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == CONTENT


async def half(writer):
    writer.write(CONTENT[: len(CONTENT) // 2])
    await writer.drain()


async def chunked_half(writer):
    writer.write(b"%x\r\n%s\r\n" % (1000, CONTENT[:1000]))
    await writer.drain()


async def nothing(_writer):
    return None


TRUNCATED = {
    "short of its length": Reply(
        200, (("Content-Length", str(len(CONTENT))),), write=half, close=True
    ),
    "chunks without end": Reply(
        200, (("Transfer-Encoding", "chunked"),), write=chunked_half, close=True
    ),
    "HTTP/1.0 without length": Reply(raw=b"HTTP/1.0 200 OK\r\n\r\n" + CONTENT[:1000]),
    "nothing": Reply(200, (("Content-Length", str(len(CONTENT))),), write=nothing, close=True),
}


@pytest.mark.parametrize("kind", TRUNCATED)
async def test_t5_a_transfer_that_breaks_off_is_repeated(fake, client, image, blob, target, kind):
    reply = TRUNCATED[kind]
    fake.on("GET", "blobs", reply, times=2)
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == CONTENT
    fake.on("GET", "blobs", reply)
    target.unlink()
    with pytest.raises(RegistryUnavailable, match=r"after [45] attempts"):
        await client.download(image, blob, ANONYMOUS, target)
    assert not list(target.parent.iterdir())


async def test_a_wrong_length_is_refused_before_anything_is_read(
    fake, client, image, blob, target, monkeypatch
):
    fake.blobs[blob.digest] = CONTENT + b"more"
    with pytest.raises(IntegrityError, match="300004 bytes in the registry, not 300000"):
        await client.download(image, blob, ANONYMOUS, target)


async def test_t6_an_endless_blob_is_cut_off(fake, client, image, target):
    small = Descriptor("x", fake.add_blob(b"abc"), 3)

    async def forever(writer):
        while True:
            writer.write(b"10000\r\n" + b"\0" * 65536 + b"\r\n")
            await writer.drain()

    fake.on("GET", "blobs", Reply(200, (("Transfer-Encoding", "chunked"),), write=forever))
    with pytest.raises(IntegrityError, match="larger than the 3 bytes"):
        await client.download(image, small, ANONYMOUS, target)
    assert not list(target.parent.iterdir())


async def test_t23_a_missing_blob_is_named(client, image, target, blob, fake):
    fake.blobs.clear()
    with pytest.raises(NotFound, match="BLOB_UNKNOWN"):
        await client.download(image, blob, ANONYMOUS, target)


async def test_a_blob_beyond_the_limit_is_not_asked_for(server, image, target, blob):
    async with connected(limits=dataclasses.replace(QUICK, blob_bytes=1000)) as client:
        with pytest.raises(LimitExceeded, match="has 300000 bytes; at most 1000 are read"):
            await client.download(image, blob, ANONYMOUS, target)
    assert server.connections == 0


async def test_t37_gzip_on_the_way_is_taken_off_and_labels_are_not_believed(
    fake, client, image, target
):
    plain, packed = b"tar" * 10_000, gzip.compress(b"tar" * 10_000)
    on_the_way = Descriptor("x", fake.add_blob(plain), len(plain))
    only_labelled = Descriptor("x", fake.add_blob(packed), len(packed))

    def encode(_request, reply):
        body = gzip.compress(reply.body) if reply.body == plain else reply.body
        return dataclasses.replace(reply, body=body).with_header("Content-Encoding", "gzip")

    fake.on("GET", "blobs", encode)
    await client.download(image, on_the_way, ANONYMOUS, target)
    assert target.read_bytes() == plain
    await client.download(image, only_labelled, ANONYMOUS, target)
    assert target.read_bytes() == packed


async def test_t37_a_bomb_as_content_encoding_stays_small(fake, client, image, target):
    small = Descriptor("x", fake.add_blob(b"x" * 100_000), 100_000)
    bomb = gzip.compress(b"\0" * 50_000_000)
    label = ("Content-Encoding", "gzip")
    fake.on("GET", "blobs", Reply(200, (label,), bomb))
    with pytest.raises(RegistryError):
        await client.download(image, small, ANONYMOUS, target)
    fake.on("GET", "blobs", Reply(200, (label,), b"x" * 5000))
    with pytest.raises(IntegrityError):
        await client.download(image, small, ANONYMOUS, target)
    assert not list(target.parent.iterdir())


async def test_t31_a_blob_is_fetched_from_elsewhere_without_credentials(
    fake, server, client, image, blob, target
):
    store = FakeRegistry()
    store.blobs[blob.digest] = CONTENT
    fake.on("*", "", lambda r, reply: reply if r.authorization == ALICE.basic else basic())
    async with serve(store, host="127.0.0.2") as elsewhere:

        def redirect(request, _reply):
            if request.authorization != ALICE.basic:
                return basic()
            return Reply(307, (("Location", f"http://{elsewhere.address}{request.target}?sig=1"),))

        fake.on("GET", "blobs", redirect)
        await client.download(image, blob, keychain(ALICE), target)
        assert target.read_bytes() == CONTENT
        [request] = elsewhere.requests
        assert request.authorization is None
        assert "referer" not in request.headers


async def test_a_store_with_other_bytes_is_found_out(fake, client, image, blob, target):
    store = FakeRegistry()
    store.blobs[blob.digest] = CONTENT[::-1]
    async with serve(store, host="127.0.0.2") as elsewhere:
        to = f"http://{elsewhere.address}/v2/acme/demo/blobs/{blob.digest}"
        fake.on("GET", "blobs", Reply(307, (("Location", to),)))
        with pytest.raises(IntegrityError):
            await client.download(image, blob, ANONYMOUS, target)
    assert not list(target.parent.iterdir())


async def test_t30_a_forbidden_store_is_not_connected_to(fake, client, image, blob, target):
    fake.on("GET", "blobs", Reply(307, (("Location", "http://169.254.169.254/x"),)))
    with pytest.raises(PolicyViolation, match=r"169\.254\.169\.254"):
        await client.download(image, blob, ANONYMOUS, target)


async def test_t3_a_transfer_that_drips_is_given_up(fake, image, blob, target):
    async def drip(writer):
        for position in range(0, len(CONTENT), 100):
            writer.write(CONTENT[position : position + 100])
            await writer.drain()
            await asyncio.sleep(0.02)

    slow = Reply(200, (("Content-Length", str(len(CONTENT))),), write=drip)
    fake.on("GET", "blobs", slow)
    limits = dataclasses.replace(QUICK, stall_seconds=0.3, stall_rate=100_000, attempts=1)
    async with RegistryClient(user_agent="x", limits=limits) as client:
        started = time.monotonic()
        slow_text = r"got \d+ of 300000 bytes: .* slower than 100000 bytes a second"
        with pytest.raises(RegistryUnavailable, match=slow_text):
            await client.download(image, blob, ANONYMOUS, target)
        assert time.monotonic() - started < 5
    assert not list(target.parent.iterdir())


async def test_a_transfer_has_a_deadline(fake, image, blob, target):
    async def pause(writer):
        await asyncio.sleep(30)

    fake.on("GET", "blobs", Reply(200, (("Content-Length", "300000"),), write=pause))
    limits = dataclasses.replace(QUICK, read_seconds=20, blob_seconds_max=0.3, attempts=1)
    async with connected(limits=limits) as client:
        with pytest.raises(RegistryUnavailable, match=r"within 0\.3 s"):
            await client.download(image, blob, ANONYMOUS, target)


async def test_a_cancelled_transfer_leaves_no_file(fake, client, image, blob, target):
    async def pause(writer):
        await half(writer)
        await asyncio.sleep(30)

    fake.on("GET", "blobs", Reply(200, (("Content-Length", "300000"),), write=pause))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await client.download(image, blob, ANONYMOUS, target)
    for _ in range(100):
        if not list(target.parent.iterdir()):
            break
        await asyncio.sleep(0.01)
    assert not list(target.parent.iterdir())


async def test_a_folder_that_is_not_there_is_a_storage_error(client, image, blob, tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*No such file"):
        await client.download(image, blob, ANONYMOUS, tmp_path / "gone" / "layer")


async def test_a_full_disk_is_named_with_a_remedy(client, image, blob, target, monkeypatch):
    def full(_self, _data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(BlobWriter, "write", full)
    with pytest.raises(StorageError, match="No space left on device; free space there"):
        await client.download(image, blob, ANONYMOUS, target)
    assert not list(target.parent.iterdir())


def test_a_link_in_the_way_of_the_temporary_file_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda _: "fixed")
    writer = BlobWriter(Descriptor("x", digest_of(b"x"), 1), tmp_path / "layer")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".layer.fixed.part").symlink_to(victim)
    writer.open()
    writer.write(b"x")
    writer.commit()
    assert victim.read_text() == "precious"
    assert (tmp_path / "layer").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("size", "seconds"), [(0, 60), (32 * 1024 * 60, 120), (1024**3, 1800), (10**12, 1800)]
)
def test_the_deadline_grows_with_the_size(size, seconds):
    assert blob_seconds(size, Limits()) == seconds


def test_a_steady_pace_is_no_stall_and_a_drip_is():
    pace = Pace(rate=4096, window=60, now=0.0)
    assert not any(pace.is_stalled(5000 * second, float(second)) for second in range(1, 600))
    pace = Pace(rate=4096, window=60, now=0.0)
    stalled = [second for second in range(1, 100) if pace.is_stalled(second, float(second))]
    assert stalled[0] == 60


def test_a_transfer_that_stops_after_a_fast_start_is_a_stall():
    pace = Pace(rate=4096, window=60, now=0.0)
    received = 10_000_000
    assert not pace.is_stalled(received, 1.0)
    stalled = [second for second in range(2, 200) if pace.is_stalled(received, float(second))]
    assert 60 <= stalled[0] <= 63


@given(st.lists(st.tuples(st.floats(0.001, 100), st.integers(0, 10**6)), max_size=200))
def test_the_memory_of_the_pace_is_bounded(steps):
    pace = Pace(rate=4096, window=60, now=0.0)
    now, received = 0.0, 0
    for wait, more in steps:
        now, received = now + wait, received + more
        pace.is_stalled(received, now)
        assert len(pace._samples) <= 70


def torn_after(reply: Reply, size: int) -> Reply:
    async def write(writer):
        writer.write(reply.body[:size])
        await writer.drain()

    length = ("Content-Length", str(len(reply.body)))
    return dataclasses.replace(reply, headers=(*reply.headers, length), write=write, close=True)


def with_body(change: Callable[[bytes], bytes]) -> Callable[[object, Reply], Reply]:
    return lambda _, reply: dataclasses.replace(reply, body=change(reply.body))


DEEDS: dict[str, Callable[[object, Reply], Reply]] = {
    "fine": lambda _, reply: reply,
    "flip": flipped,
    "short": lambda _, __: TRUNCATED["short of its length"],
    "long": with_body(lambda body: body + b"x"),
    "other": with_body(lambda body: body[::-1]),
    "shifted": with_body(lambda body: body[1:] + b"x"),
    "torn": lambda _, reply: torn_after(reply, 120_000),
    "whole": lambda _, __: Reply(200, (), CONTENT),
    "416": lambda _, __: Reply(416),
    "503": lambda _, __: Reply(503),
    "reset": lambda _, __: Reply(raw=b""),
}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plan=st.lists(st.sampled_from(sorted(DEEDS)), max_size=6))
def test_whatever_happens_the_file_is_right_or_absent(plan, tmp_path_factory):
    asyncio.run(_download_by_plan(list(plan), tmp_path_factory.mktemp("plan") / "layer"))


async def _download_by_plan(plan: list[str], target: Path) -> None:
    folder = target.parent
    fake = FakeRegistry()
    blob = Descriptor("x", fake.add_blob(CONTENT), len(CONTENT))

    def act(request: object, reply: Reply) -> Reply:
        return DEEDS[plan.pop(0) if plan else "fine"](request, reply)

    fake.on("GET", "blobs", act)
    async with serve(fake) as server, connected() as client:
        image = parse_reference(f"{server.address}/acme/demo:v1")
        try:
            await client.download(image, blob, ANONYMOUS, target)
        except RegistryError:
            wanted = []
        else:
            wanted = ["layer"]
    if wanted:
        content = await asyncio.to_thread(target.read_bytes)
        assert hashlib.sha256(content).hexdigest() == blob.digest[7:]
    assert await asyncio.to_thread(os.listdir, folder) == wanted


MEMORY = """
import asyncio, hashlib, resource, sys
from pathlib import Path
from controller.registry.client import RegistryClient
from controller.registry.credentials import Keychain
from controller.registry.media import Descriptor
from controller.registry.reference import parse_reference
SIZE = 300 * 1024 * 1024
async def serve(reader, writer):
    first = await reader.read(65536)
    if first[:1] == b"\\x16":
        writer.write(b"HTTP/1.1 400 Bad Request\\r\\n\\r\\n"); writer.close(); return
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % SIZE)
    for _ in range(SIZE // 1048576):
        writer.write(bytes(1048576)); await writer.drain()
    writer.close()
async def main():
    whole = hashlib.sha256()
    for _ in range(SIZE // 1048576): whole.update(bytes(1048576))
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        image = parse_reference(f"127.0.0.1:{port}/a:v1")
        async with RegistryClient(user_agent="x") as client:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            blob = Descriptor("x", f"sha256:{whole.hexdigest()}", SIZE)
            await client.download(image, blob, Keychain.anonymous(), Path(sys.argv[1]))
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(after - before)
asyncio.run(main())
"""


def test_a_large_blob_takes_little_memory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "layer")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(done.stdout) < 32 * 1024  # KiB
    assert (tmp_path / "layer").stat().st_size == 300 * 1024 * 1024
