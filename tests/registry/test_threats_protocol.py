"""Threats T10 to T22, T38 to T40: manifests, headers and connections that lie."""

import asyncio
import json
from typing import Any

import pytest

from controller.registry.failures import (
    IntegrityError,
    LimitExceeded,
    MalformedManifest,
    RegistryError,
    RegistryUnavailable,
    UnsupportedMedia,
)
from controller.registry.framing import Framing
from controller.registry.reference import parse_reference
from tests.fakes.registry import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Reply,
    digest_of,
    serve,
)
from tests.registry.conftest import ANONYMOUS, connected
from tests.registry.threats import refused

EMPTY = {"mediaType": OCI_CONFIG, "digest": digest_of(b"{}"), "size": 2}
LAYER = {"mediaType": OCI_LAYER, "digest": digest_of(b"x"), "size": 1}
IMAGE = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": EMPTY, "layers": [LAYER]}
INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


async def manifest_of(client, fake, image, document, kind=OCI_MANIFEST):
    digest = fake.add_manifest("acme/demo", document, kind=kind)
    return await client.manifest(image, digest, ANONYMOUS)


@pytest.mark.parametrize("value", ["sha256:" + "a" * 64 + "\x00", "\x1b[31msha256:evil"])
async def test_t10_a_digest_header_never_reaches_a_path_or_text(
    fake, server, client, image, value, capsys
):
    digest = fake.add_image("acme/demo", b"layer")
    evil = ("Docker-Content-Digest", value)
    fake.on("HEAD", "", lambda _, r: r.without("Docker-Content-Digest").with_header(*evil))
    assert await client.resolve(image, ANONYMOUS) == digest
    assert set(server.seen) == {
        "HEAD /v2/acme/demo/manifests/v1",
        "GET /v2/acme/demo/manifests/v1",
    }
    assert "evil" not in capsys.readouterr().out


async def test_t11_a_digest_that_contradicts_the_content_is_not_believed(
    fake, server, client, image
):
    digest = fake.add_image("acme/demo", b"layer")
    wrong = ("Docker-Content-Digest", digest_of(b"other"))
    fake.on("HEAD", "v1", Reply(405))
    fake.on("GET", "v1", lambda _, r: r.without("Docker-Content-Digest").with_header(*wrong))
    assert await client.resolve(image, ANONYMOUS) == digest
    async with connected(policy="strict") as strict:
        with refused(IntegrityError, "but its content is .*--registry-policy=warn"):
            await strict.resolve(image, ANONYMOUS)


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000])
async def test_t13_a_manifest_nested_without_end_is_refused(fake, client, image, body):
    with refused(MalformedManifest, "nested"):
        await manifest_of(client, fake, image, body)


@pytest.mark.parametrize("key", ["layers", "config", "mediaType"])
async def test_t14_a_key_that_occurs_twice_is_refused(fake, client, image, key):
    text = json.dumps(IMAGE)[:-1] + f', "{key}": []' + "}"
    with refused(MalformedManifest, f'key "{key}" occurs twice'):
        await manifest_of(client, fake, image, text.encode())


async def test_t15_a_manifest_is_one_thing_only(fake, client, image):
    with refused(MalformedManifest, "image and index at once"):
        await manifest_of(client, fake, image, IMAGE | {"manifests": []})
    with refused(MalformedManifest, "calls itself"):
        await manifest_of(client, fake, image, IMAGE, kind=OCI_INDEX)
    with refused(MalformedManifest, "image and index at once"):
        await manifest_of(client, fake, image, IMAGE | {"fsLayers": []})


@pytest.mark.parametrize("kind", ["v1+json", "v1+prettyjws"])
async def test_t16_schema_1_is_refused_with_a_remedy(fake, client, image, kind):
    document = {"schemaVersion": 1, "fsLayers": []}
    full = f"application/vnd.docker.distribution.manifest.{kind}"
    with refused(UnsupportedMedia, "schema 1.*rebuild or push the package with a current tool"):
        await manifest_of(client, fake, image, document, kind=full)


@pytest.mark.parametrize("size", ["-1", "1.0", "1e400", "true", '"5"', "9223372036854775808"])
async def test_t17_a_size_that_is_none_is_refused(fake, server, client, image, size):
    text = json.dumps(IMAGE | {"layers": [LAYER | {"size": "SIZE"}]}).replace('"SIZE"', size)
    with refused(MalformedManifest, "is no size|is no integer"):
        await manifest_of(client, fake, image, text.encode())
    assert not any("blobs" in line for line in server.seen)


@pytest.mark.parametrize(
    "digest",
    ["sha256:../../etc/passwd", "SHA256:" + "a" * 64, "sha256:" + "A" * 64, "md5:" + "a" * 32, ""],
)
async def test_t18_a_digest_that_is_none_is_refused(fake, server, client, image, digest):
    with refused(MalformedManifest, "is no supported digest"):
        await manifest_of(client, fake, image, IMAGE | {"layers": [LAYER | {"digest": digest}]})
    assert not any("etc" in line for line in server.seen)


async def test_t19_counts_are_limited(fake, client, image):
    flag = "--registry-limit=layers=N"
    with refused(LimitExceeded, f"has 10000 layers; at most 127 are read.*{flag}"):
        await manifest_of(client, fake, image, IMAGE | {"layers": [LAYER] * 10_000})
    entry = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"x"), "size": 1}
    with refused(LimitExceeded, "has 1025 manifests.*--registry-limit=index-entries=N"):
        await manifest_of(
            client, fake, image, INDEX | {"manifests": [entry] * 1025}, kind=OCI_INDEX
        )
    notes = {f"n{number}": "x" * 1000 for number in range(5000)}
    with refused(LimitExceeded, "larger than 4194304 bytes.*--registry-limit=manifest-bytes=N"):
        await manifest_of(client, fake, image, IMAGE | {"annotations": notes})


async def test_t20_indexes_deeper_than_three_are_refused(fake, client, image):
    digest, size = "", 0
    for level in range(50):
        entry = {"mediaType": OCI_INDEX, "digest": digest or digest_of(b"x"), "size": size}
        raw = json.dumps(INDEX | {"manifests": [entry], "annotations": {"n": str(level)}}).encode()
        digest, size = fake.add_manifest("acme/demo", raw, kind=OCI_INDEX), len(raw)
    with refused(MalformedManifest, "deeper than 3 levels"):
        await client.manifest(image, digest, ANONYMOUS)


async def test_t22_a_missing_config_does_not_matter(fake, server, client, image):
    digest = fake.add_image("acme/demo", b"layer")
    fake.blobs.clear()
    assert await client.manifest(image, digest, ANONYMOUS)
    assert not any("blobs" in line for line in server.seen)


SMUGGLED = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"


async def test_t38_bytes_behind_an_answer_are_no_answer(fake, server, client, image):
    fake.add_image("acme/demo", b"layer")

    async def more(writer):
        writer.write(b'{"tags":["v1"]}' + SMUGGLED)

    honest = (("Content-Type", "application/json"), ("Content-Length", "15"))
    fake.on("GET", "tags", Reply(200, honest, write=more), times=1)
    assert await client.tags(image, ANONYMOUS) == ["v1"]
    assert await client.tags(image, ANONYMOUS) == ["v1"]
    assert server.connections == 3  # a handshake that was not understood, and one for each answer


async def test_t38_an_answer_without_length_ends_its_connection(fake, server, client, image):
    async def chunked(writer):
        writer.write(b'f\r\n{"tags":["v1"]}\r\n0\r\n\r\n' + SMUGGLED)

    fake.on("GET", "tags", Reply(200, (("Transfer-Encoding", "chunked"),), write=chunked))
    for _ in range(3):
        assert await client.tags(image, ANONYMOUS) == ["v1"]
    assert server.connections == 4


async def test_t38_a_hundred_continues_change_nothing(fake, client, image):
    body = b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"tags":null}'
    fake.on("GET", "tags", Reply(raw=b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + body))
    assert await client.tags(image, ANONYMOUS) == []


async def test_t39_a_head_with_a_body_ends_its_connection(fake, server, client, image):
    digest = fake.add_image("acme/demo", b"layer")

    async def body(writer):
        writer.write(SMUGGLED)

    fake.on("HEAD", "v1", lambda _, reply: Reply(200, reply.headers, write=body), times=1)
    assert await client.resolve(image, ANONYMOUS) == digest
    assert (await client.manifest(image, digest, ANONYMOUS)).descriptor.digest == digest
    assert server.connections == 3


async def test_an_honest_connection_is_used_again(fake, server, client, image):
    digest = fake.add_image("acme/demo", b"layer")
    for _ in range(5):
        await client.resolve(image, ANONYMOUS)
        await client.manifest(image, digest, ANONYMOUS)
        await client.tags(image, ANONYMOUS)
    assert server.connections == 2


@pytest.mark.parametrize(
    ("request_line", "received", "clean"),
    [
        (b"GET / HTTP/1.1", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"], True),
        (b"GET / HTTP/1.1", [b"HTTP/1.1 200 OK\r\ncontent-length:2\r\n\r", b"\no", b"k"], True),
        (b"GET / HTTP/1.1", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokX"], False),
        (b"GET / HTTP/1.1", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no"], False),
        (b"GET / HTTP/1.1", [b"HTTP/1.1 200 OK\r\n\r\n"], False),
        (b"GET / HTTP/1.1", [b"HTTP/1.1 204 No\r\n\r\n"], True),
        (b"GET / HTTP/1.1", [b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 304 N\r\n\r\n"], True),
        (b"HEAD / HTTP/1.1", [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"], True),
        (b"HEAD / HTTP/1.1", [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"], False),
        (b"GET / HTTP/1.1", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"], False),
        (
            b"GET / HTTP/1.1",
            [b"HTTP/1.1 200 O\r\nContent-Length: 0\r\nTransfer-Encoding: x\r\n\r\n"],
            False,
        ),
        (
            b"GET / HTTP/1.1",
            [b"HTTP/1.1 200 O\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n"],
            False,
        ),
        (b"GET / HTTP/1.1", [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000], False),
    ],
)
def test_t38_only_answers_that_end_where_they_said_are_clean(request_line, received, clean):
    framing = Framing()
    framing.sent(request_line + b"\r\n\r\n")
    for data in received:
        framing.received(data)
    assert framing.is_clean is clean


def test_t38_a_connection_is_judged_by_its_last_answer():
    framing = Framing()
    assert not framing.is_clean
    for _ in range(3):
        framing.sent(b"GET / HTTP/1.1\r\n\r\n")
        framing.sent(b"body")
        assert not framing.is_clean
        framing.received(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        assert framing.is_clean


async def test_t40_tags_that_are_none_are_dropped(fake, client, image):
    tags = ["v1", "../../x", "-bad", "a" * 200, "v1", "", "x\u0000y", "1." + "9" * 100]
    body = json.dumps({"tags": [*tags, 5, None]}).encode()
    fake.on("GET", "tags", Reply(200, (), body))
    assert await client.tags(image, ANONYMOUS) == ["v1", "1." + "9" * 100]


async def test_t40_too_many_tags_are_refused(fake, client, image):
    body = json.dumps({"tags": [f"v{number}" for number in range(100_001)]}).encode()
    fake.on("GET", "tags", Reply(200, (), body))
    with refused(LimitExceeded, "more than 100000 tags.*--registry-limit=tags=N"):
        await client.tags(image, ANONYMOUS)


async def test_t40_pages_without_end_are_refused(fake, client, image):
    count = 0

    def endless(_request, _reply):
        nonlocal count
        count += 1
        link = ("Link", f'</v2/acme/demo/tags/list?last=v{count}>; rel="next"')
        return Reply(200, (link,), json.dumps({"tags": [f"v{count}"]}).encode())

    fake.on("GET", "tags", endless)
    with refused(LimitExceeded, "200 pages long.*--registry-limit=tags-pages=N"):
        await client.tags(image, ANONYMOUS)


async def test_t42_a_port_that_speaks_http_is_no_https_registry(fake, tmp_path, pauses):
    fake.add_image("acme/demo", b"layer")
    async with serve(fake) as plain:
        table = Addresses(plain.address)
        image = parse_reference(f"reg.example:{plain.address.rpartition(':')[2]}/acme/demo:v1")
        async with connected(pauses, resolve=table.resolve) as client:
            with refused(RegistryError, "does not speak TLS.*--insecure-registry=reg.example"):
                await client.resolve(image, ANONYMOUS)
    assert plain.requests == []
    assert pauses.taken == []


class Addresses:
    """Resolves every name to one server."""

    def __init__(self, address: str) -> None:
        self._host = address.partition(":")[0]

    async def resolve(self, _host, _port):
        return [self._host]


async def test_t43_a_proxy_that_answers_itself_is_named(fake, pauses):
    from controller.registry.proxies import Proxies

    async def proxy(_request):
        return Reply(407, (("Proxy-Authenticate", "Basic"),), b"login")

    async def portal(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n<html>Please log in</html>")
        await writer.drain()
        writer.close()

    image = parse_reference("reg.example/acme/demo:v1")
    async with serve(proxy) as server:
        proxies = Proxies(http=f"http://u:hidden@{server.address}")
        options: dict[str, Any] = {"proxies": proxies, "insecure": ["10.0.0.0/8"]}
        inside = parse_reference("10.0.0.5/acme/demo:v1")
        async with connected(pauses, **options) as client:
            endpoint = await client._transport.endpoint("10.0.0.5")
            endpoint.scheme = "http"
            with refused(RegistryUnavailable, f"the proxy {server.address} refused .*407") as found:
                await client.resolve(inside, ANONYMOUS)
        assert "hidden" not in found.text
    listener = await asyncio.start_server(portal, "127.0.0.1", 0)
    address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener, connected(pauses, proxies=Proxies(https=f"http://{address}")) as client:
        with refused(RegistryError, f"reg.example .through the proxy {address}. "):
            await client.resolve(image, ANONYMOUS)
    async with connected(pauses, proxies=Proxies(https="http://127.0.0.1:1")) as client:
        with refused(RegistryUnavailable, "through the proxy 127.0.0.1:1. refuses connections"):
            await client.resolve(image, ANONYMOUS)


async def test_a_missing_blob_at_a_push_is_no_news(fake, server, client, image, capsys):
    await client.push_blob(image, b"content", ANONYMOUS)
    assert "HEAD" in server.seen[0]
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
