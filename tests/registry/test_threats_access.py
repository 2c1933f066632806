"""Threats T25 to T32, T34, T41, T44 and T46: challenges, token servers, TLS, names and places."""

import asyncio
import dataclasses
import json
import ssl
from typing import Any

import httpcore
import pytest

from controller.registry.connection import GuardedBackend, Peer
from controller.registry.failures import (
    AuthError,
    PolicyViolation,
    RateLimited,
    RegistryError,
    RegistryUnavailable,
)
from controller.registry.grants import read_token
from controller.registry.reference import parse_reference
from tests.fakes.registry import FakeRegistry, Reply, bearer, error, serve
from tests.registry.certificates import Authority
from tests.registry.conftest import ANONYMOUS, QUICK, connected, keychain
from tests.registry.network import Network
from tests.registry.test_tokens import ALICE, TokenServer, protect
from tests.registry.threats import refused

PUBLIC, PRIVATE = "93.184.216.34", "10.1.2.3"


def through(table: Network, authority: Authority) -> dict[str, Any]:
    """Return how a client reaches the servers of a table."""
    return {"resolve": table.resolve, "dialler": table, "ca_bundle": authority.bundle}


@pytest.fixture
def digest(fake):
    return fake.add_image("acme/demo", b"layer")


@pytest.mark.parametrize(
    "headers",
    [
        (("WWW-Authenticate", 'Bearer realm="https://a/t"'),) * 50,
        (("WWW-Authenticate", ", ".join(f'S{n} realm="x"' for n in range(50))),),
        (("WWW-Authenticate", "Bearer realm=" + "x" * 20_000),),
        (("WWW-Authenticate", "Bearer realm=" + "x" * 1_000_000),),
        (("WWW-Authenticate", "Negotiate"), ("WWW-Authenticate", "NTLM")),
        (),
    ],
)
async def test_t25_challenges_are_bounded(fake, server, client, image, headers):
    fake.on("*", "", Reply(401, headers))
    with refused(RegistryError, "challenge|unsupported authentication scheme|401|broke"):
        await client.resolve(image, keychain(ALICE))
    assert all(request.authorization is None for request in server.requests)


async def test_t26_a_fresh_token_is_tried_once(fake, server, client, image, digest):
    tokens = TokenServer(ALICE)
    async with serve(tokens) as realm:
        fake.on("*", "", bearer(f"http://{realm.address}/token"))
        with refused(AuthError, "access denied.*secret ns/alice"):
            await client.resolve(image, keychain(ALICE))
    assert tokens.given == 2
    assert len(server.requests) == 3


@pytest.mark.parametrize("life", [-1, 0, 10**9, 10**30, "60", None, True])
def test_t27_the_life_of_a_token_is_bounded(life):
    body = json.dumps({"token": "t", "expires_in": life}).encode()
    token, seconds = read_token(body, host="h")
    assert token == "t"
    assert 50 <= seconds <= 86_390


def test_t27_a_token_that_waited_lives_the_shorter():
    body = b'{"token":"t","expires_in":300,"issued_at":"2026-01-01T00:00:00Z"}'
    moment = 1767225600.0
    assert read_token(body, host="h", now=moment + 100) == ("t", 190.0)
    assert read_token(body, host="h", now=moment + 301) == ("t", 290.0)
    assert read_token(body, host="h", now=moment - 50) == ("t", 290.0)
    odd = body.replace(b"2026-01-01T00:00:00Z", b"yesterday")
    assert read_token(odd, host="h", now=moment + 100) == ("t", 290.0)


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"x" * 200_000, b'{"token":"a\\r\\nX: y"}', b'{"token":""}', b'{"token":5}', b"[]"],
)
async def test_t27_what_is_no_token_is_not_sent(fake, server, client, image, digest, body):
    async def realm(_request):
        return Reply(200, (), body)

    async with serve(realm) as tokens:
        fake.on("*", "", bearer(f"http://{tokens.address}/token"))
        with refused(RegistryError, "no usable token|larger than 131072 bytes"):
            await client.resolve(image, ANONYMOUS)
    assert all(request.authorization is None for request in server.requests)


async def test_t29_a_realm_whose_name_leads_inside_is_not_asked(tmp_path):
    authority, fake, inside = Authority(tmp_path), FakeRegistry(), FakeRegistry()
    fake.on("*", "", bearer("https://auth.evil.example/token"))
    async with (
        serve(fake, tls=authority.server("reg.example")) as registry,
        serve(inside) as hidden,
    ):
        servers = {PUBLIC: registry.address, "127.0.0.1": hidden.address}
        names = {"reg.example": [PUBLIC], "auth.evil.example": ["127.0.0.1"]}
        table = Network(names, servers)
        options: dict[str, Any] = {
            "resolve": table.resolve,
            "dialler": table,
            "ca_bundle": authority.bundle,
        }
        async with connected(**options) as client:
            image = parse_reference("reg.example/acme/demo:v1")
            with refused(PolicyViolation, "which is a loopback address"):
                await client.resolve(image, keychain(ALICE))
    assert hidden.connections == 0
    assert table.dialled == [PUBLIC]


async def test_t29_hops_of_a_token_server_are_few(fake, server, client, image, digest):
    async def hop(request):
        number = int(request.target.rpartition("hop=")[2] or 0) if "hop=" in request.target else 0
        return Reply(302, (("Location", f"/token?hop={number + 1}"),))

    async with serve(hop) as realm:
        fake.on("*", "", bearer(f"http://{realm.address}/token"))
        with refused(PolicyViolation, "redirects more than 3 times"):
            await client.resolve(image, ANONYMOUS)
    assert len(realm.requests) == 4


@pytest.mark.parametrize("policy", ["warn", "strict"])
@pytest.mark.parametrize("allowed", [(), ("10.0.0.0/8",)])
async def test_t30_private_stores_follow_policy_and_ranges(tmp_path, policy, allowed):
    authority, fake, store = Authority(tmp_path), FakeRegistry(), FakeRegistry()
    digest = fake.add_image("acme/demo", b"layer")
    store.add_image("acme/demo", b"layer")
    to = f"https://store.example/v2/acme/demo/manifests/{digest}"
    fake.on("GET", "manifests", Reply(307, (("Location", to),)))
    async with (
        serve(fake, tls=authority.server("reg.example")) as registry,
        serve(store, tls=authority.server("store.example")) as inside,
    ):
        names = {"reg.example": [PUBLIC], "store.example": [PRIVATE]}
        table = Network(names, {PUBLIC: registry.address, PRIVATE: inside.address})
        options: dict[str, Any] = {
            "resolve": table.resolve,
            "dialler": table,
            "ca_bundle": authority.bundle,
        }
        async with connected(policy=policy, private_redirects=allowed, **options) as client:
            image = parse_reference("reg.example/acme/demo:v1")
            if policy == "strict" and not allowed:
                flags = "--allow-private-redirects, or --registry-policy=warn"
                with refused(PolicyViolation, f"which is a private address.*{flags}"):
                    await client.manifest(image, digest, keychain(ALICE))
                assert inside.connections == 0
            else:
                await client.manifest(image, digest, keychain(ALICE))
                assert [request.authorization for request in inside.requests] == [None]


async def test_t34_a_busy_token_server_is_left_alone_by_all(fake, server, client, image, digest):
    fake.add_image("acme/other", b"layer")

    async def busy(_request):
        return error(429, "TOOMANYREQUESTS", "slow", ("Retry-After", "600"))

    async with serve(busy) as realm:
        fake.on("*", "", bearer(f"http://{realm.address}/token"))
        for name in ("demo", "other", "demo"):
            other = parse_reference(f"{server.address}/acme/{name}:v1")
            with refused(RateLimited, "token server|asked to wait") as found:
                await client.resolve(other, ANONYMOUS)
            assert found.error.retry_after == pytest.approx(600)
    assert len(realm.requests) == 1


def tls_server(authority: Authority, **options: object) -> ssl.SSLContext:
    context = authority.server("127.0.0.1")
    for name, value in options.items():
        setattr(context, name, value)
    return context


async def test_t41_a_server_that_wants_a_certificate_is_named(fake, tmp_path, pauses, digest):
    authority = Authority(tmp_path)
    context = tls_server(authority, verify_mode=ssl.CERT_REQUIRED)
    context.load_verify_locations(authority.bundle)
    async with serve(fake, tls=context) as server:
        image = parse_reference(f"{server.address}/acme/demo:v1")
        async with connected(pauses, ca_bundle=authority.bundle) as client:
            with refused(RegistryError, "CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE|broke"):
                await client.resolve(image, ANONYMOUS)
    assert server.requests == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_t41_old_tls_is_refused_without_falling_back(fake, tmp_path, pauses, digest):
    authority = Authority(tmp_path)
    context = authority.server("reg.example")
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serve(fake, tls=context) as server:
        table = Network({"reg.example": [PUBLIC]}, {PUBLIC: server.address})
        options: dict[str, Any] = {
            "resolve": table.resolve,
            "dialler": table,
            "ca_bundle": authority.bundle,
        }
        async with connected(pauses, **options) as client:
            with refused(RegistryError, "VERSION|broke"):
                await client.resolve(parse_reference("reg.example/acme/demo:v1"), ANONYMOUS)
    assert server.requests == []


class Slow(httpcore.AsyncNetworkBackend):
    """Some addresses never answer, some refuse, the others connect."""

    def __init__(self, silent=(), refusing=()):
        self.silent, self.refusing = silent, refusing
        self.opened, self.closed = [], []

    async def connect_tcp(
        self,
        host,
        port,
        timeout=None,  # noqa: ASYNC109 - the library's signature
        local_address=None,
        socket_options=None,
    ):
        if host in self.silent:
            await asyncio.sleep(60)
        if host in self.refusing:
            raise httpcore.ConnectError("refused")
        self.opened.append(host)
        return Opened(self, host)


class Opened(httpcore.AsyncNetworkStream):
    def __init__(self, backend, host):
        self.backend, self.host = backend, host

    async def aclose(self):
        self.backend.closed.append(self.host)


async def dialled(backend, addresses, seconds=5.0):
    async def resolve(_host, _port):
        return addresses

    peer = Peer(host="reg.example", http_allowed=False, policy="warn", warn=print)
    return await GuardedBackend(peer, resolve, backend).connect_tcp("reg.example", 443, seconds)


async def test_t44_an_address_that_swallows_everything_costs_a_moment():
    backend = Slow(silent={"2001:4860::1"})
    async with asyncio.timeout(2):
        stream = await dialled(backend, ["2001:4860::1", PUBLIC])
    assert isinstance(stream, Opened)
    assert stream.host == PUBLIC
    assert backend.closed == []


async def test_t44_refusals_do_not_wait_for_the_next_turn():
    backend = Slow(refusing={"8.8.8.1", "8.8.8.2", "8.8.8.3"})
    stream = await dialled(backend, ["8.8.8.1", "8.8.8.2", "8.8.8.3", PUBLIC])
    assert isinstance(stream, Opened)
    assert backend.opened == [PUBLIC]
    with pytest.raises(httpcore.ConnectError):
        await dialled(backend, ["8.8.8.1", "8.8.8.2"])
    with pytest.raises(httpcore.ConnectError):
        await dialled(backend, [])


async def test_t44_silent_addresses_end_with_the_timeout():
    backend = Slow(silent={"8.8.8.1", "8.8.8.2"})
    with pytest.raises(httpcore.ConnectTimeout):
        await dialled(backend, ["8.8.8.1", "8.8.8.2"], seconds=0.4)
    assert backend.opened == []


@pytest.mark.parametrize("location", ["http://169.254.169.254/put", "https://10.0.0.7/put"])
async def test_t46_no_byte_of_a_blob_goes_to_a_forbidden_place(tmp_path, location):
    authority, fake = Authority(tmp_path), FakeRegistry()
    fake.on("POST", "uploads", Reply(202, (("Location", location),)))
    async with serve(fake, tls=authority.server("reg.example")) as registry:
        table = Network({"reg.example": [PUBLIC]}, {PUBLIC: registry.address})
        options: dict[str, Any] = {
            "resolve": table.resolve,
            "dialler": table,
            "ca_bundle": authority.bundle,
        }
        async with connected(policy="strict", **options) as client:
            image = parse_reference("reg.example/acme/demo:v1")
            with refused(PolicyViolation, "169.254.169.254|https to http|10.0.0.7"):
                await client.push_blob(image, b"content", keychain(ALICE))
    assert table.dialled == [PUBLIC]


async def test_two_secrets_wait_for_no_token_of_each_other(fake, server, image, digest, pauses):
    tokens = TokenServer(ALICE, anonymous=False)
    async with serve(tokens) as realm:
        protect(fake, f"http://{realm.address}/token", "alice")
        limits = dataclasses.replace(QUICK, per_registry=4)
        async with connected(pauses, limits=limits) as client, asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(client.resolve(image, keychain(ALICE)))
    assert tokens.given == 1


async def test_t1_a_dead_host_is_given_up_within_its_budget(client, pauses):
    image = parse_reference("127.0.0.1:1/acme/demo:v1")
    with refused(RegistryUnavailable, "refuses connections .after 4 attempts"):
        await client.resolve(image, ANONYMOUS)
    assert sum(pauses.taken) <= 1 + 3 + 9
