"""Threats T1 to T7, T23, T31 to T37 and T45: answers that come late, torn, wrong or not at all."""

import asyncio
import dataclasses
import gzip
import random
import re
from collections.abc import Awaitable

import pytest

from controller.registry.download import Stalled, range_fits
from controller.registry.failures import (
    IntegrityError,
    NotFound,
    RateLimited,
    RegistryError,
    RegistryUnavailable,
    UnsupportedMedia,
)
from controller.registry.media import Descriptor
from controller.registry.reference import parse_reference
from controller.registry.transfer import Course, RangeRefused
from controller.registry.wire import Limits
from tests.fakes.registry import FakeRegistry, Reply, error, serve
from tests.registry.conftest import ANONYMOUS, QUICK, connected, keychain
from tests.registry.test_tokens import ALICE
from tests.registry.threats import refused

CONTENT = random.Random(2).randbytes(1_000_000)
STEP = 150_000


@pytest.fixture
def blob(fake):
    return Descriptor("application/x", fake.add_blob(CONTENT), len(CONTENT))


@pytest.fixture
def target(tmp_path):
    return tmp_path / "layer"


def torn(step: int = STEP):
    """Send the head of an answer and so many bytes of its body, then end the connection."""

    def change(_request, reply):
        if reply.status not in (200, 206) or len(reply.body) <= step:
            return reply

        async def write(writer):
            writer.write(reply.body[:step])
            await writer.drain()

        length = ("Content-Length", str(len(reply.body)))
        return dataclasses.replace(reply, headers=(*reply.headers, length), write=write, close=True)

    return change


def ranges(server):
    return [request.headers.get("range") for request in server.requests]


async def test_t4_a_torn_transfer_goes_on_where_it_broke(fake, server, client, image, blob, target):
    fake.on("GET", "blobs", torn(), times=3)
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=150000-", "bytes=300000-", "bytes=450000-"]
    tags = [request.headers.get("if-range") for request in server.requests]
    assert tags == [None] + [f'"{blob.digest}"'] * 3


async def test_t4_a_transfer_that_always_tears_is_given_up(
    fake, server, client, image, blob, target, pauses
):
    fake.on("GET", "blobs", torn())
    with refused(RegistryUnavailable, "got 900000 of 1000000 bytes", folder=target.parent) as found:
        await client.download(image, blob, ANONYMOUS, target)
    assert blob.digest in found.text
    assert "after 6 attempts" in found.text
    assert len(server.requests) == 6
    assert not found.error.transient


async def test_t4_steps_too_small_to_matter_are_no_progress(
    fake, server, client, image, blob, target
):
    fake.on("GET", "blobs", torn(1000))
    with refused(
        RegistryUnavailable, "got 4000 of 1000000 bytes.*4 attempts", folder=target.parent
    ):
        await client.download(image, blob, ANONYMOUS, target)
    assert len(server.requests) == 4


@pytest.mark.parametrize("form", ["length", "chunks", "http10"])
async def test_t5_each_form_of_a_short_body_is_resumed(
    fake, server, client, image, blob, target, form
):
    part = CONTENT[:200_000]

    async def chunk(writer):
        writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        await writer.drain()

    reply = {
        "length": torn(200_000),
        "chunks": Reply(200, (("Transfer-Encoding", "chunked"),), write=chunk, close=True),
        "http10": Reply(raw=b"HTTP/1.0 200 OK\r\n\r\n" + part),
    }[form]
    fake.on("GET", "blobs", reply, times=1)
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=200000-"]


async def test_t7_bytes_of_several_answers_are_hashed_as_one(
    fake, server, client, image, blob, target
):
    other = random.Random(3).randbytes(len(CONTENT))
    fake.on("GET", "blobs", torn(), times=1)

    def lie(request, reply):
        at = len(other) - len(reply.body)
        return dataclasses.replace(reply, body=other[at:]) if "range" in request.headers else reply

    fake.on("GET", "blobs", lie)
    fake.on("GET", "blobs", torn(), times=1)
    await client.download(image, blob, ANONYMOUS, target)
    # The forged rest was found out, thrown away with the rest, and all of it asked for anew.
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=150000-", None]


async def test_t6_a_rest_that_is_too_long_spoils_nothing(fake, server, client, image, blob, target):
    async def endless(writer):
        for _ in range(20):
            writer.write(b"10000\r\n" + b"\0" * 65536 + b"\r\n")
            await writer.drain()

    def longer(request, reply):
        if "range" not in request.headers:
            return reply
        chunked = reply.with_header("Transfer-Encoding", "chunked")
        return dataclasses.replace(chunked, write=endless, close=True)

    fake.on("GET", "blobs", longer)
    fake.on("GET", "blobs", torn(), times=1)
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=150000-", None]


async def test_t36_a_registry_that_refuses_parts_is_not_asked_for_them_again(
    fake, server, client, image, blob, target
):
    failures = 0

    def answer(request, reply):
        nonlocal failures
        if "range" in request.headers:
            return Reply(416)
        failures += 1
        return torn()(request, reply) if failures <= 2 else reply

    fake.on("GET", "blobs", answer)
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=150000-", None, None]


REST = f"bytes 150000-{len(CONTENT) - 1}/{len(CONTENT)}"
MISFITS = {
    "no range": None,
    "another start": f"bytes 150001-{len(CONTENT) - 1}/{len(CONTENT)}",
    "another end": f"bytes 150000-{len(CONTENT)}/{len(CONTENT)}",
    "another size": f"bytes 150000-{len(CONTENT) - 1}/{len(CONTENT) + 1}",
    "nonsense": "bytes x-y/z",
}


@pytest.mark.parametrize("kind", [*MISFITS, "416", "multipart"])
async def test_t36_a_wrong_range_starts_the_blob_anew(
    fake, server, client, image, blob, target, kind
):
    def answer(request, reply):
        if "range" not in request.headers:
            return reply
        if kind == "416":
            return Reply(416, (("Content-Length", "1000000"),), b"no such range", close=True)
        rest = reply.without("Content-Range")
        if kind == "multipart":
            return rest.with_header("Content-Type", "multipart/byteranges; boundary=x")
        return rest.with_header("Content-Range", MISFITS[kind]) if MISFITS[kind] else rest

    fake.on("GET", "blobs", answer)
    fake.on("GET", "blobs", torn(), times=1)
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=150000-", None]


async def test_t36_a_registry_without_ranges_is_read_from_the_front(
    fake, server, client, image, blob, target
):
    def whole(request, reply):
        return Reply(200, (), CONTENT) if "range" in request.headers else reply

    fake.on("GET", "blobs", whole)
    fake.on("GET", "blobs", torn(), times=1)
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=150000-"]


async def test_t36_a_blob_that_changed_meanwhile_is_read_anew(
    fake, server, client, image, blob, target
):
    fake.on("GET", "blobs", lambda _, reply: reply.without("ETag").with_header("ETag", '"new"'))
    fake.on("GET", "blobs", torn(), times=1)
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == CONTENT


async def test_t36_a_part_that_nobody_asked_for_is_refused(
    fake, server, client, image, blob, target
):
    part = Reply(206, (("Content-Range", f"bytes 0-9/{len(CONTENT)}"),), CONTENT[:10])
    fake.on("GET", "blobs", part)
    with refused(RegistryError, "HTTP 206", folder=target.parent):
        await client.download(image, blob, ANONYMOUS, target)


def test_t36_large_blobs_are_not_read_again_and_again():
    course = Course(Limits())
    assert course.next_pause(RangeRefused("no parts"), 0, 0.5) == 0.0
    assert course.next_pause(RangeRefused("no parts"), 0, 0.5) is None


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("bytes 5-9/10", True),
        ("bytes 5-9/*", True),
        ("bytes 5-9/11", False),
        ("bytes 4-9/10", False),
        ("bytes 5-8/10", False),
        ("bytes */10", False),
        ("items 5-9/10", False),
        ("bytes 5-9/10, bytes 5-9/10", False),
        ("bytes 5-" + "9" * 40 + "/*", False),
        ("", False),
    ],
)
def test_t36_ranges_are_read_strictly(text, fits):
    assert range_fits(text, start=5, size=10) is fits


def test_t3_a_stalled_transfer_made_no_progress():
    course, limits = Course(Limits()), Limits()
    slow = Stalled("slow", transient=True)
    pauses = [course.next_pause(slow, 10**6, 1.0) for _ in range(limits.attempts)]
    assert pauses == [1.0, 3.0, 9.0, None]
    assert course.resumes == 0


async def test_t2_a_head_that_comes_byte_by_byte_is_given_up(fake, server, image, blob, target):
    async def loris(writer):
        for byte in b"HTTP/1.1 200 OK\r\n" * 200:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)

    fake.on("GET", "blobs", Reply(raw=b"", write=loris))
    limits = dataclasses.replace(QUICK, metadata_seconds=0.4, attempts=1)
    async with connected(limits=limits) as client:
        with refused(RegistryUnavailable, r"no answer .* within 0\.4 s", folder=target.parent):
            await client.download(image, blob, ANONYMOUS, target)


async def test_t1_a_silent_registry_does_not_hold_up_others(fake, server, image, pauses):
    digest = fake.add_image("acme/demo", b"layer")

    async def silent(_request):
        await asyncio.sleep(60)
        return Reply()

    async with serve(silent) as quiet:
        limits = dataclasses.replace(QUICK, read_seconds=0.3)
        async with connected(pauses, limits=limits) as client:
            reference = parse_reference(f"{quiet.address}/acme/demo:v1")
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(failure(client.tags(reference, ANONYMOUS)))
                assert await client.resolve(image, ANONYMOUS) == digest
                assert not waiting.done()
    assert re.search(r"did not answer in time \(after 4 attempts\)", waiting.result())
    assert len(quiet.requests) == 4


async def failure(work: Awaitable[object]) -> str:
    with pytest.raises(RegistryError) as raised:
        await work
    return str(raised.value)


async def test_t23_a_missing_layer_is_named_as_missing(client, image, blob, target, fake):
    fake.blobs.clear()
    missing = f"layer {blob.digest} is missing in the registry"
    with refused(NotFound, missing, folder=target.parent) as found:
        await client.download(image, blob, ANONYMOUS, target)
    assert not found.error.final


@pytest.mark.parametrize(
    "kind",
    [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ],
)
async def test_t45_layers_elsewhere_are_not_fetched(client, server, image, target, kind, fake):
    foreign = Descriptor(kind, "sha256:" + "0" * 64, 10)
    with refused(UnsupportedMedia, "foreign layers are not allowed", folder=target.parent):
        await client.download(image, foreign, ANONYMOUS, target)
    here = dataclasses.replace(foreign, digest=fake.add_blob(b"0123456789"))
    await client.download(image, here, ANONYMOUS, target)
    assert all("/v2/acme/demo/blobs/" in line for line in server.seen)


async def test_t31_a_transfer_goes_on_through_a_new_redirect(
    fake, server, client, image, blob, target
):
    store = FakeRegistry()
    store.blobs[blob.digest] = CONTENT
    store.on("GET", "blobs", torn(), times=1)
    signed = 0
    async with serve(store, host="127.0.0.2") as elsewhere:

        def redirect(request, _reply):
            nonlocal signed
            signed += 1
            to = f"http://{elsewhere.address}{request.target}?signature=s{signed}"
            return Reply(307, (("Location", to),))

        fake.on("GET", "blobs", redirect)
        await client.download(image, blob, keychain(ALICE), target)
        assert target.read_bytes() == CONTENT
        assert [line.rpartition("=")[2] for line in elsewhere.seen] == ["s1", "s2"]
        assert {request.authorization for request in elsewhere.requests} == {None}


async def test_t31_signed_addresses_stay_out_of_errors(fake, server, client, image, blob, target):
    async with serve(FakeRegistry(), host="127.0.0.2") as elsewhere:
        to = f"http://{elsewhere.address}/v2/a/blobs/x?X-Signature=topsecret"
        fake.on("GET", "blobs", Reply(307, (("Location", to),)))
        with refused(NotFound, "missing", folder=target.parent, forbidden=(elsewhere,)) as found:
            await client.download(image, blob, keychain(ALICE), target)
    assert "topsecret" not in found.text


async def test_t37_an_encoded_answer_is_not_continued(fake, server, client, image, target):
    plain = b"tar" * 200_000
    blob = Descriptor("x", fake.add_blob(plain), len(plain))
    packed = gzip.compress(random.Random(1).randbytes(300_000))

    def encode(_request, _reply):
        label = ("Content-Encoding", "gzip")
        return torn(100_000)(None, Reply(200, (label,), packed))

    fake.on("GET", "blobs", encode, times=1)
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == plain
    assert ranges(server) == [None, None]


async def test_t37_a_part_that_is_encoded_is_refused(fake, server, client, image, blob, target):
    def encode(request, reply):
        coded = reply.with_header("Content-Encoding", "gzip")
        return coded if "range" in request.headers else reply

    fake.on("GET", "blobs", encode)
    fake.on("GET", "blobs", torn(), times=1)
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == CONTENT
    assert ranges(server)[-1] is None


async def test_t34_a_pause_that_comes_while_others_wait_holds_for_them(fake, server, pauses):
    for number in range(12):
        fake.add_image(f"acme/p{number}", b"layer")
    slow = error(429, "TOOMANYREQUESTS", "slow", ("Retry-After", "30"))

    async def limit(_request, _reply):
        await asyncio.sleep(0.01)
        return slow

    fake.on("HEAD", "", limit, times=4)
    async with connected(pauses) as client, asyncio.TaskGroup() as tasks:
        for number in range(12):
            image = parse_reference(f"{server.address}/acme/p{number}:v1")
            tasks.create_task(client.resolve(image, ANONYMOUS))
    # Four were under way; nobody else asked before the pause was over.
    assert len(server.requests) == 4 + 12


async def test_t34_whoever_waits_for_a_place_waits_for_the_pause_too(fake, server, pauses):
    for number in range(12):
        fake.add_image(f"acme/p{number}", b"layer")

    async def limit(_request, _reply):
        await asyncio.sleep(0.01)
        return error(429, "TOOMANYREQUESTS", "slow", ("Retry-After", "30"))

    fake.on("HEAD", "", limit, times=4)
    limits = dataclasses.replace(QUICK, attempts=1)
    images = [parse_reference(f"{server.address}/acme/p{number}:v1") for number in range(12)]
    async with connected(pauses, limits=limits) as client:
        found = await asyncio.gather(
            *(client.resolve(image, ANONYMOUS) for image in images), return_exceptions=True
        )
    assert sum(isinstance(answer, RateLimited) for answer in found) == 4
    assert sum(isinstance(answer, str) for answer in found) == 8


async def test_t34_a_store_that_is_busy_holds_up_only_itself(fake, client, image, target, pauses):
    digest = fake.add_image("acme/demo", b"layer")
    blob = Descriptor("x", fake.add_blob(b"abc"), 3)
    store = FakeRegistry()
    store.on("GET", "", error(429, "SLOW", "down", ("Retry-After", "3600")))
    async with serve(store, host="127.0.0.2") as elsewhere:
        to = f"http://{elsewhere.address}/blob"
        fake.on("GET", "blobs", Reply(307, (("Location", to),)))
        for _ in range(3):
            with refused(RateLimited, "127.0.0.2", folder=target.parent) as found:
                await client.download(image, blob, ANONYMOUS, target)
            assert found.error.retry_after == pytest.approx(3600)
        assert len(elsewhere.requests) == 1
    assert await client.resolve(image, ANONYMOUS) == digest
    assert pauses.taken == []


async def test_t35_a_storm_of_failures_ends_in_silence(fake, server, pauses):
    busy = error(503, "UNAVAILABLE", "busy")
    fake.on("*", "", busy)
    images = [parse_reference(f"{server.address}/acme/p{number}:v1") for number in range(200)]
    async with connected(pauses) as client:
        errors = await asyncio.gather(
            *(client.resolve(image, ANONYMOUS) for image in images), return_exceptions=True
        )
        assert all(isinstance(found, RegistryUnavailable) for found in errors)
        # Five in a row, and what was under way with them, then nobody.
        assert len(server.requests) <= 5 + 4
        last = next(found for found in errors if "not asked" in str(found))
        assert isinstance(last, RegistryUnavailable)
        assert last.retry_after is not None
        assert 0 < last.retry_after <= 30
        fake.rules.clear()
        fake.add_image("acme/p0", b"layer")
        pauses.now += 31
        assert await client.resolve(images[0], ANONYMOUS)
        assert await client.resolve(images[0], ANONYMOUS)


async def test_t35_a_host_where_nothing_listens_is_left_alone(pauses):
    asked = []
    images = [parse_reference(f"127.0.0.1:1/acme/p{number}:v1") for number in range(200)]
    async with connected(pauses, observe=lambda *facts: asked.append(facts)) as client:
        errors = await asyncio.gather(
            *(client.resolve(image, ANONYMOUS) for image in images), return_exceptions=True
        )
    assert all(isinstance(found, RegistryUnavailable) for found in errors)
    assert len(asked) <= 2 * (5 + 4)  # each try knocks by HTTPS and by HTTP


async def test_t35_one_request_finds_out_whether_a_registry_is_back(fake, server, pauses):
    fake.add_image("acme/demo", b"layer")
    image = parse_reference(f"{server.address}/acme/demo:v1")
    limits = dataclasses.replace(QUICK, attempts=1)
    async with connected(pauses, limits=limits) as client:
        fake.on("*", "", Reply(502))
        for _ in range(5):
            with refused(RegistryUnavailable, "HTTP 502|not asked"):
                await client.resolve(image, ANONYMOUS)
        asked = len(server.requests)
        pauses.now += 31
        for _ in range(3):
            with refused(RegistryUnavailable, "HTTP 502|not asked"):
                await client.tags(image, ANONYMOUS)
        assert len(server.requests) == asked + 1


async def test_t35_one_broken_package_does_not_stop_the_others(fake, server, pauses):
    fake.add_image("acme/good", b"layer")
    fake.on("*", "acme/bad", Reply(500))
    bad = parse_reference(f"{server.address}/acme/bad:v1")
    good = parse_reference(f"{server.address}/acme/good:v1")
    async with connected(pauses) as client:
        for _ in range(5):
            with refused(RegistryUnavailable, "HTTP 500"):
                await client.resolve(bad, ANONYMOUS)
            assert await client.resolve(good, ANONYMOUS)


async def test_t33_a_redirect_of_a_blob_is_not_read(fake, server, client, image, blob, target):
    sent = 0

    async def forever(writer):
        nonlocal sent
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    to = f"/v2/acme/demo/blobs/{blob.digest}?second=1"
    long = (("Location", to), ("Content-Length", "10000000000"))
    fake.on("GET", f"{blob.digest}$", Reply(302, long, write=forever, close=True))
    await client.download(image, blob, ANONYMOUS, target)
    assert target.read_bytes() == CONTENT
    assert sent < 50_000_000


async def test_t3_a_download_has_one_deadline_for_all_its_tries(
    fake, server, image, blob, target, pauses
):
    def age(_request, reply):
        async def write(writer):
            writer.write(reply.body[:100_000])
            await writer.drain()
            await asyncio.sleep(0.05)  # until the client reads
            pauses.now += 50.0

        length = ("Content-Length", str(len(reply.body)))
        return dataclasses.replace(reply, headers=(*reply.headers, length), write=write, close=True)

    fake.on("GET", "blobs", age)
    limits = dataclasses.replace(QUICK, blob_seconds=60)  # and 30.5 for a megabyte
    async with connected(pauses, limits=limits) as client:
        with refused(RegistryUnavailable, "got 200000 of 1000000 bytes", folder=target.parent):
            await client.download(image, blob, ANONYMOUS, target)
    assert len(server.requests) == 2


async def test_the_digest_decides_even_when_the_length_is_right(
    fake, server, client, image, blob, target
):
    fake.blobs[blob.digest] = CONTENT[::-1]
    with refused(IntegrityError, "does not match its digest", folder=target.parent):
        await client.download(image, blob, ANONYMOUS, target)
    assert len(server.requests) == 2
