import asyncio
import dataclasses
import socket

import pytest

from controller.registry.failures import (
    LimitExceeded,
    NotFound,
    PolicyViolation,
    RateLimited,
    RegistryUnavailable,
    TLSError,
)
from controller.registry.reference import parse_reference
from tests.fakes.registry import FakeRegistry, Reply, error, serve
from tests.registry.certificates import Authority
from tests.registry.conftest import ANONYMOUS, QUICK, Pauses, connected

BUSY = error(503, "UNAVAILABLE", "busy")


def limited(**changes):
    return dataclasses.replace(QUICK, **changes)


async def test_a_loopback_registry_is_spoken_to_over_plain_http(fake, server, client, image):
    digest = fake.add_image("acme/demo", b"layer")
    assert await client.resolve(image, ANONYMOUS) == digest
    assert await client.resolve(image, ANONYMOUS) == digest
    assert server.seen == ["HEAD /v2/acme/demo/manifests/v1"] * 2
    assert server.connections == 2  # the first one was a handshake that nobody understood


async def test_a_loopback_registry_may_speak_https_and_stays_with_it(fake, tmp_path):
    authority = Authority(tmp_path)
    digest = fake.add_image("acme/demo", b"layer")
    async with serve(fake, tls=authority.server("127.0.0.1")) as server:
        image = parse_reference(f"{server.address}/acme/demo:v1")
        async with connected(ca_bundle=authority.bundle) as client:
            assert await client.resolve(image, ANONYMOUS) == digest


@pytest.mark.parametrize(
    ("host", "expired", "trusted", "why"),
    [
        ("127.0.0.1", False, False, "unable to get local issuer certificate"),
        ("127.0.0.1", True, True, "certificate has expired"),
        ("other.example", False, True, "IP address mismatch"),
    ],
)
async def test_t41_a_certificate_error_never_falls_back_to_http(
    fake, tmp_path, pauses, host, expired, trusted, why
):
    authority = Authority(tmp_path)
    tls = authority.server(host, expired=expired)
    async with serve(fake, tls=tls) as server:
        image = parse_reference(f"{server.address}/acme/demo:v1")
        async with connected(pauses, ca_bundle=authority.bundle if trusted else None) as client:
            with pytest.raises(TLSError, match=why) as raised:
                await client.resolve(image, ANONYMOUS)
    assert server.requests == []
    assert pauses.taken == []
    assert "--ca-bundle-path" in str(raised.value)


@pytest.mark.parametrize("content", [None, b"no certificate"])
async def test_a_ca_bundle_that_cannot_be_read_is_named(tmp_path, content):
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_bytes(content)
    with pytest.raises(TLSError, match=r"ca\.pem"):
        async with connected(ca_bundle=bundle):
            pass


async def test_transient_failures_are_tried_again_with_growing_pauses(
    fake, server, client, image, pauses
):
    digest = fake.add_image("acme/demo", b"layer")
    fake.on("HEAD", "manifests", BUSY, times=2)
    assert await client.resolve(image, ANONYMOUS) == digest
    assert len(pauses.taken) == 2
    assert 0.5 <= pauses.taken[0] <= 1
    assert 1.5 <= pauses.taken[1] <= 3


async def test_attempts_are_bounded_and_counted_in_the_text(fake, server, client, image, pauses):
    fake.on("*", "manifests", BUSY)
    with pytest.raises(RegistryUnavailable, match=r"HTTP 503: UNAVAILABLE: busy$") as raised:
        await client.resolve(image, ANONYMOUS)
    assert server.seen.count("HEAD /v2/acme/demo/manifests/v1") == 4
    assert server.seen.count("GET /v2/acme/demo/manifests/v1") == 1
    assert str(raised.value).startswith(f"{image}: ")


async def test_what_is_not_transient_is_not_tried_again(server, client, image, pauses):
    with pytest.raises(NotFound, match="manifest unknown"):
        await client.resolve(image, ANONYMOUS)
    assert pauses.taken == []


@pytest.mark.parametrize("asked", ["7", "60"])
async def test_t34_a_short_retry_after_is_obeyed(fake, server, client, image, pauses, asked):
    digest = fake.add_image("acme/demo", b"layer")
    slow = error(429, "TOOMANYREQUESTS", "slow", ("Retry-After", asked))
    fake.on("HEAD", "manifests", slow, times=1)
    assert await client.resolve(image, ANONYMOUS) == digest
    assert pauses.taken == [float(asked)]
    assert "GET" not in " ".join(server.seen)


async def test_t34_a_long_retry_after_is_left_to_the_caller_for_all_of_the_registry(
    fake, server, client, image, pauses
):
    fake.add_image("acme/demo", b"layer")
    fake.add_image("acme/other", b"layer")
    slow = error(429, "TOOMANYREQUESTS", "slow", ("Retry-After", "86400"))
    fake.on("HEAD", "demo", slow, times=1)
    with pytest.raises(RateLimited) as raised:
        await client.resolve(image, ANONYMOUS)
    assert raised.value.retry_after == 86400
    other = parse_reference(f"{server.address}/acme/other:v1")
    with pytest.raises(RateLimited, match="asked to wait 86400 s more") as raised:
        await client.resolve(other, ANONYMOUS)
    assert len(server.requests) == 1
    assert pauses.taken == []
    pauses.now += 86_401
    assert await client.resolve(other, ANONYMOUS)


@pytest.mark.parametrize("asked", ["soon", "-5", "880.092µs"])
async def test_t34_nonsense_in_retry_after_is_ignored(fake, server, client, image, pauses, asked):
    fake.add_image("acme/demo", b"layer")
    header = ("Retry-After", asked.encode("utf-8").decode("latin-1"))
    fake.on("HEAD", "manifests", error(429, "X", "slow", header), times=1)
    await client.resolve(image, ANONYMOUS)
    assert 0 < pauses.taken[0] <= 1


async def hang(writer):
    await asyncio.sleep(60)


async def drip(writer):
    for _ in range(1000):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("write", [hang, drip])
async def test_t2_every_answer_has_a_deadline(fake, server, image, write):
    fake.add_image("acme/demo", b"layer")
    fake.on("GET", "tags", lambda _, reply: dataclasses.replace(reply, write=write))
    limits = limited(read_seconds=0.3, metadata_seconds=0.6, attempts=2)
    async with connected(limits=limits) as client:
        with pytest.raises(RegistryUnavailable, match=r"(in time|within).*\(after 2 attempts\)"):
            await client.tags(image, ANONYMOUS)


async def test_t1_a_registry_that_accepts_and_says_nothing_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        image = parse_reference(f"127.0.0.1:{listener.getsockname()[1]}/acme/demo:v1")
        async with connected(limits=limited(connect_seconds=0.2, attempts=2)) as client:
            with pytest.raises(RegistryUnavailable, match="does not accept connections in time"):
                await client.resolve(image, ANONYMOUS)


async def test_nothing_listens(client):
    image = parse_reference("127.0.0.1:1/acme/demo:v1")
    with pytest.raises(RegistryUnavailable, match=r"127\.0\.0\.1:1 refuses connections"):
        await client.resolve(image, ANONYMOUS)


async def test_t35_at_most_four_requests_at_once_reach_a_registry(fake, server, client):
    async def slowly(_request, reply):
        await asyncio.sleep(0.02)
        return reply

    fake.on("*", "", slowly)
    references = []
    for number in range(20):
        fake.add_image(f"acme/p{number}", b"layer")
        references.append(parse_reference(f"{server.address}/acme/p{number}:v1"))
    async with asyncio.TaskGroup() as tasks:
        for reference in references:
            tasks.create_task(client.resolve(reference, ANONYMOUS))
    assert server.most_open <= 4 + 4  # and as many handshakes that were not understood
    assert server.connections <= 8


async def test_at_most_a_total_of_requests_is_under_way():
    async def slowly(_request, reply):
        await asyncio.sleep(0.05)
        return reply

    fakes = [FakeRegistry() for _ in range(4)]
    for fake in fakes:
        fake.add_image("acme/demo", b"layer")
        fake.on("*", "", slowly)
    under_way, most = 0, 0

    def watch(fake):
        async def handler(request):
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await fake(request)
            finally:
                under_way -= 1

        return handler

    async with (
        serve(watch(fakes[0])) as a,
        serve(watch(fakes[1])) as b,
        serve(watch(fakes[2])) as c,
        serve(watch(fakes[3])) as d,
        connected(limits=limited(total=3)) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for server in (a, b, c, d) * 3:
            image = parse_reference(f"{server.address}/acme/demo:v1")
            tasks.create_task(client.resolve(image, ANONYMOUS))
    assert most == 3


async def test_waiting_for_a_connection_has_an_end(fake, server, image):
    fake.add_image("acme/demo", b"layer")
    fake.on("HEAD", "demo", lambda _, reply: dataclasses.replace(reply, write=hang))
    fake.on("HEAD", "demo", wait_long)
    limits = limited(per_registry=1, slot_seconds=0.1, metadata_seconds=1.0, attempts=1)
    async with connected(limits=limits) as client:
        first = asyncio.get_running_loop().create_task(client.resolve(image, ANONYMOUS))
        await asyncio.sleep(0.3)
        with pytest.raises(RegistryUnavailable, match=r"all connections were busy for 0\.1 s"):
            await client.resolve(image, ANONYMOUS)
        with pytest.raises(RegistryUnavailable):
            await first


async def wait_long(_request, reply):
    await asyncio.sleep(3)
    return reply


async def test_cancelling_frees_the_connection(fake, server, image):
    fake.add_image("acme/demo", b"layer")
    fake.on("HEAD", "demo", wait_long, times=1)
    async with connected(limits=limited(per_registry=1)) as client:
        await client.tags(image, ANONYMOUS)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.resolve(image, ANONYMOUS)
        assert await client.resolve(image, ANONYMOUS)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            "connection to",
        ),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", "connection to"),
        (b"nonsense\r\n\r\n", "connection to"),
        (b"", "connection to"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", "connection to"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nx\r\n", "connection to"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "connection to"),
    ],
)
async def test_t38_broken_http_is_an_error_that_ends(fake, server, client, image, raw, why):
    fake.on("GET", "tags", Reply(raw=raw))
    with pytest.raises(RegistryUnavailable, match=why) as raised:
        await client.tags(image, ANONYMOUS)
    assert len(str(raised.value)) < 1500
    assert str(raised.value).isprintable()


async def test_t40_a_body_beyond_the_limit_is_not_read_to_its_end(fake, server, image):
    async def forever(writer):
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    endless = Reply(200, (("Transfer-Encoding", "chunked"),), write=forever, close=True)
    fake.on("GET", "tags", endless)

    async def chunks(writer):
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()

    fake.on("GET", "tags", dataclasses.replace(endless, write=chunks))
    async with connected(limits=limited(tags_page_bytes=1_000_000)) as client:
        with pytest.raises(LimitExceeded, match="list of tags is larger than 1000000 bytes"):
            await client.tags(image, ANONYMOUS)


async def test_every_request_is_observed_and_named(fake, server, image, pauses):
    fake.add_image("acme/demo", b"layer")
    seen = []
    async with connected(pauses, observe=lambda *facts: seen.append(facts)) as client:
        await client.resolve(image, ANONYMOUS)
        await client.tags(image, ANONYMOUS)
    assert [facts[:3] for facts in seen] == [
        (server.address, "manifest_head", 0),
        (server.address, "manifest_head", 200),
        (server.address, "tags", 200),
    ]
    assert all(facts[3] >= 0 for facts in seen)
    assert {request.headers["user-agent"] for request in server.requests} == {"crossdock/test"}
    assert {request.headers["accept-encoding"] for request in server.requests} == {"identity"}


async def test_cookies_are_not_kept(fake, server, client, image):
    fake.add_image("acme/demo", b"layer")
    fake.on("*", "", lambda _, reply: reply.with_header("Set-Cookie", "a=b; Path=/"))
    await client.resolve(image, ANONYMOUS)
    await client.tags(image, ANONYMOUS)
    assert all("cookie" not in request.headers for request in server.requests)


async def test_connections_of_registries_unused_longest_are_closed(monkeypatch):
    monkeypatch.setattr("controller.registry.transport.REGISTRIES_MAX", 2)
    fake = FakeRegistry()
    fake.add_image("acme/demo", b"layer")
    async with serve(fake) as a, serve(fake) as b, serve(fake) as c, connected() as client:
        for server in (a, b, c):
            image = parse_reference(f"{server.address}/acme/demo:v1")
            await client.resolve(image, ANONYMOUS)
        for _ in range(100):
            if a.open_now == 0:
                break
            await asyncio.sleep(0.01)
        assert (a.open_now, b.open_now, c.open_now) == (0, 1, 1)


async def test_t33_a_redirect_is_followed_without_its_body_being_read(fake, server, client, image):
    digest = fake.add_image("acme/demo", b"layer")

    async def forever(writer):
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    long = Reply(
        307,
        (("Location", f"/v2/acme/demo/manifests/{digest}"), ("Content-Length", "10000000000")),
        write=forever,
        close=True,
    )
    fake.on("HEAD", "manifests/v1", dataclasses.replace(long, write=None))
    fake.on("GET", "manifests/v1", long)
    assert await client.resolve(image, ANONYMOUS) == digest


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///etc/passwd", "no web URL"),
        ("ftp://127.0.0.1/x", "no web URL"),
        ("https://user:pw@127.0.0.1/x", "user name"),
        ("http://169.254.169.254/latest/meta-data", "link-local or reserved address"),
        ("http://[::ffff:169.254.169.254]/x", "link-local or reserved address"),
        ("https://0.0.0.0/x", "link-local or reserved address"),
    ],
)
async def test_t30_redirects_to_forbidden_places_are_refused(
    fake, server, client, image, location, message, pauses
):
    fake.on("*", "manifests", Reply(302, (("Location", location),)))
    with pytest.raises(PolicyViolation, match=message) as raised:
        await client.resolve(image, ANONYMOUS)
    assert raised.value.final
    assert "pw" not in str(raised.value)
    assert len(server.requests) == 1


async def test_t30_redirects_end(fake, server, client, image):
    fake.on("*", "manifests", Reply(302, (("Location", "/v2/acme/demo/manifests/v1"),)))
    with pytest.raises(PolicyViolation, match="in a circle"):
        await client.resolve(image, ANONYMOUS)

    def next_hop(request, _reply):
        hop = int(request.target.rpartition("=")[2] if "=" in request.target else 0)
        return Reply(302, (("Location", f"/v2/acme/demo/manifests/v1?hop={hop + 1}"),))

    fake.on("*", "manifests", next_hop)
    before = len(server.requests)
    with pytest.raises(PolicyViolation, match="more than 5 times"):
        await client.resolve(image, ANONYMOUS)
    assert len(server.requests) - before == 6


@pytest.mark.parametrize("location", ["http://[::1", "https://\x01/", "http://127.0.0.1:99999/x"])
async def test_t30_a_redirect_to_no_url_is_an_error(fake, server, client, image, location):
    fake.on("*", "manifests", Reply(302, (("Location", location),)))
    with pytest.raises((RegistryUnavailable, PolicyViolation)):
        await client.resolve(image, ANONYMOUS)


async def test_t30_a_redirect_from_https_to_http_is_refused(fake, tmp_path):
    authority = Authority(tmp_path)
    async with (
        serve(fake) as plain,
        serve(fake, tls=authority.server("127.0.0.1")) as safe,
        connected(ca_bundle=authority.bundle) as client,
    ):
        fake.on("HEAD", "manifests", Reply(302, (("Location", f"http://{plain.address}/x"),)))
        with pytest.raises(PolicyViolation, match="from https to http"):
            await client.resolve(parse_reference(f"{safe.address}/acme/demo:v1"), ANONYMOUS)
        assert plain.requests == []


async def test_pauses_are_those_of_one_registry_only(pauses: Pauses):
    busy, idle = FakeRegistry(), FakeRegistry()
    idle.add_image("acme/demo", b"layer")
    busy.on("*", "", error(429, "X", "slow", ("Retry-After", "3600")))
    async with serve(busy) as a, serve(idle) as b, connected(pauses) as client:
        with pytest.raises(RateLimited):
            await client.resolve(parse_reference(f"{a.address}/acme/demo:v1"), ANONYMOUS)
        assert await client.resolve(parse_reference(f"{b.address}/acme/demo:v1"), ANONYMOUS)
