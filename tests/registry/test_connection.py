import asyncio

import httpcore
import httpx
import pytest

from controller.registry.connection import GuardedBackend, Peer, resolve_name
from controller.registry.failures import PolicyViolation, RegistryUnavailable
from controller.registry.guard import Reach
from controller.registry.proxies import Proxies
from controller.registry.reference import parse_reference
from controller.registry.trust import tls_context
from tests.fakes.registry import FakeRegistry, Reply, serve
from tests.registry.certificates import Authority
from tests.registry.conftest import ANONYMOUS, connected
from tests.registry.network import Network

PUBLIC, ALSO_PUBLIC, PRIVATE = "93.184.216.34", "93.184.216.35", "10.1.2.3"


def peer(host="reg.example", policy="warn"):
    warnings: list[str] = []
    return Peer(host=host, http_allowed=False, policy=policy, warn=warnings.append), warnings


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://cdn.example/x", "no web URL"),
        ("https://u@cdn.example/x", "user name"),
        ("http://cdn.example/x", "from https to http"),
        ("https://169.254.169.254/x", "link-local"),
        ("https://127.0.0.1/x", "loopback address"),
        ("https://[::1]/x", "loopback address"),
        ("https://cdn.example:99999/x", "no web URL"),
    ],
)
def test_targets_are_judged_before_anything_is_resolved(url, message):
    registry, _ = peer()
    with pytest.raises(PolicyViolation, match=message):
        registry.check_target(httpx.URL(url), came_from=httpx.URL("https://reg.example/v2/"))


def test_a_private_target_of_a_public_registry_is_warned_of_once():
    registry, warnings = peer()
    for _ in range(2):
        registry.check_addresses("blobs.example", [PRIVATE])
    assert warnings == ["registry sends requests to blobs.example, a private address"]


def test_a_private_target_of_a_public_registry_is_refused_when_strict():
    registry, _ = peer(policy="strict")
    with pytest.raises(PolicyViolation, match=r"blobs\.example, which is a private address"):
        registry.check_addresses("blobs.example", [PUBLIC, PRIVATE])


def test_a_registry_inside_the_cluster_may_name_private_hosts():
    registry, warnings = peer(policy="strict")
    registry.check_addresses("reg.example", [PRIVATE])
    assert registry.reach is Reach.PRIVATE
    registry.check_addresses("minio.example", ["10.9.9.9"])
    with pytest.raises(PolicyViolation):
        registry.check_addresses("metadata.example", ["169.254.169.254"])
    assert warnings == []


def network(names, servers):
    table = Network(names, servers)
    return {"resolve": table.resolve, "dialler": table}, table


async def test_t30_a_name_that_leads_to_a_forbidden_address_is_never_connected_to(tmp_path):
    authority = Authority(tmp_path)
    fake, target = FakeRegistry(), FakeRegistry()
    fake.on("*", "manifests", Reply(307, (("Location", "https://evil.example/steal"),)))
    async with (
        serve(fake, tls=authority.server("reg.example")) as registry,
        serve(target) as forbidden,
    ):
        servers = {PUBLIC: registry.address, "169.254.169.254": forbidden.address}
        names = {"reg.example": [PUBLIC], "evil.example": [PUBLIC, "169.254.169.254"]}
        options, table = network(names, servers)
        async with connected(ca_bundle=authority.bundle, **options) as client:
            with pytest.raises(PolicyViolation, match=r"evil\.example, which is a link-local"):
                await client.resolve(parse_reference("reg.example/acme/demo:v1"), ANONYMOUS)
    assert table.dialled == [PUBLIC]
    assert forbidden.connections == 0


async def test_t30_a_name_is_resolved_once_for_judging_and_dialling(tmp_path):
    authority = Authority(tmp_path)
    fake, blobs = FakeRegistry(), FakeRegistry()
    digest = fake.add_image("acme/demo", b"layer")
    fake.on(
        "HEAD", "v1", Reply(307, (("Location", "https://cdn.example/v2/acme/demo/manifests/v1"),))
    )
    blobs.add_image("acme/demo", b"layer")
    answers = iter([[ALSO_PUBLIC], ["127.0.0.1"]])
    async with (
        serve(fake, tls=authority.server("reg.example")) as registry,
        serve(blobs, tls=authority.server("cdn.example")) as cdn,
    ):
        options, table = network(
            {"reg.example": [PUBLIC]}, {PUBLIC: registry.address, ALSO_PUBLIC: cdn.address}
        )

        async def rebinding(host, port):
            return next(answers) if host == "cdn.example" else await table.resolve(host, port)

        options["resolve"] = rebinding
        async with connected(ca_bundle=authority.bundle, **options) as client:
            image = parse_reference("reg.example/acme/demo:v1")
            assert await client.resolve(image, ANONYMOUS) == digest
    assert table.dialled == [PUBLIC, ALSO_PUBLIC]


async def test_the_next_address_is_tried_when_one_does_not_answer(fake, server):
    fake.add_image("acme/demo", b"layer")
    servers = {"127.0.0.9": "127.0.0.1:1", "127.0.0.1": server.address}
    options, table = network({"reg.localhost": ["127.0.0.9", "127.0.0.1"]}, servers)
    async with connected(**options) as client:
        await client.resolve(parse_reference("reg.localhost:5000/acme/demo:v1"), ANONYMOUS)
    assert table.dialled[:2] == ["127.0.0.9", "127.0.0.1"]


async def test_t44_only_a_few_of_many_addresses_are_tried(pauses):
    many = [f"10.0.{n // 256}.{n % 256}" for n in range(1000)]
    options, table = network({"reg.example": many}, dict.fromkeys(many, "127.0.0.1:1"))
    async with connected(pauses, **options) as client:
        with pytest.raises(RegistryUnavailable, match=r"reg\.example"):
            await client.resolve(parse_reference("reg.example/a:v1"), ANONYMOUS)
    assert len(table.dialled) == 4 * 4


async def test_t44_an_unknown_name_is_looked_up_twice(pauses):
    options, table = network({}, {})
    async with connected(pauses, **options) as client:
        with pytest.raises(
            RegistryUnavailable, match=r"reg\.example cannot be resolved.*2 attempts"
        ):
            await client.resolve(parse_reference("reg.example/a:v1"), ANONYMOUS)
    assert table.dialled == []


async def test_addresses_of_both_families_come_in_turn(monkeypatch):
    async def found(*_args, **_options):
        return [(0, 0, 0, "", (address, 0)) for address in ("::1", "::2", "::3", "1.1.1.1", "::1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
    assert await resolve_name("x", 1) == ["::1", "1.1.1.1", "::2", "::3"]


async def test_resolving_is_part_of_the_connect_timeout():
    async def slow(host, port):
        await asyncio.sleep(60)
        return []

    registry, _ = peer()
    with pytest.raises(httpcore.ConnectTimeout):
        await GuardedBackend(registry, slow).connect_tcp("reg.example", 443, timeout=0.05)


def test_old_tls_is_not_spoken():
    context = tls_context(None)
    assert context.minimum_version.name == "TLSv1_2"
    assert context.check_hostname


async def test_t43_a_proxy_is_asked_by_connect_and_named_in_errors(fake, tmp_path, pauses):
    asked = []

    async def proxy(request):
        asked.append((request.method, request.target, request.headers.get("proxy-authorization")))
        return Reply(407, close=True)

    async with serve(proxy) as server:
        proxies = Proxies(https=f"http://user:secret1@{server.address}")
        refused = f"the proxy {server.address} refused the connection to reg.example: 407"
        async with connected(pauses, proxies=proxies) as client:
            with pytest.raises(RegistryUnavailable, match=refused) as raised:
                await client.resolve(parse_reference("reg.example/a:v1"), ANONYMOUS)
    assert asked == [("CONNECT", "reg.example:443", "Basic dXNlcjpzZWNyZXQx")]
    assert "secret1" not in str(raised.value)


async def test_a_registry_is_reached_through_a_proxy(fake, tmp_path):
    authority = Authority(tmp_path)
    digest = fake.add_image("acme/demo", b"layer")
    async with serve(fake, tls=authority.server("reg.example")) as registry:
        tunnels = []

        async def tunnel(reader, writer):
            tunnels.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
            far_reader, far_writer = await asyncio.open_connection(*registry.address.split(":"))
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(copy(reader, far_writer))
                tasks.create_task(copy(far_reader, writer))

        async def copy(reader, writer):
            while data := await reader.read(65536):
                writer.write(data)
            writer.close()

        listener = await asyncio.start_server(tunnel, "127.0.0.1", 0)
        proxies = Proxies(https=f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        async with connected(proxies=proxies, ca_bundle=authority.bundle) as client:
            image = parse_reference("reg.example/acme/demo:v1")
            assert await client.resolve(image, ANONYMOUS) == digest
        listener.close()
        assert tunnels == [b"CONNECT reg.example:443 HTTP/1.1"]
        await asyncio.sleep(0.05)
