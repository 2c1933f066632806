import dataclasses
import gzip
import hashlib
import json

import pytest

from controller.registry.credentials import Keychain
from controller.registry.failures import (
    AuthError,
    IntegrityError,
    LimitExceeded,
    MalformedManifest,
    NotFound,
    RateLimited,
    RegistryError,
    RegistryUnavailable,
    UnsupportedMedia,
)
from controller.registry.media import ACCEPT
from controller.registry.reference import parse_reference
from tests.fakes.registry import OCI_INDEX, OCI_MANIFEST, Reply, digest_of, error
from tests.registry.conftest import ANONYMOUS, QUICK, connected

V1 = "/v2/acme/demo/manifests/v1"


@pytest.fixture
def digest(fake):
    return fake.add_image("acme/demo", b"layer")


async def test_a_reference_with_a_digest_needs_no_request(server, client, image):
    pinned = image.with_digest(digest_of(b"x"))
    assert await client.resolve(pinned, ANONYMOUS) == digest_of(b"x")
    assert server.connections == 0


async def test_head_and_get_say_the_same_about_what_is_accepted(
    fake, server, client, image, digest
):
    fake.on("HEAD", "manifests", lambda _, reply: reply.without("Docker-Content-Digest"))
    await client.resolve(image, ANONYMOUS)
    assert [request.method for request in server.requests] == ["HEAD", "GET"]
    assert {request.headers["accept"] for request in server.requests} == {ACCEPT}


def with_digest(value):
    return lambda _, reply: reply.without("Docker-Content-Digest").with_header(
        "Docker-Content-Digest", value
    )


HEAD_FAULTS = {
    "no digest": lambda _, reply: reply.without("Docker-Content-Digest"),
    "no hex": with_digest("sha256:XYZ"),
    "another algorithm": with_digest("md5:d41d8cd98f00b204e9800998ecf8427e"),
    "long": with_digest("sha256:" + "a" * 10_000),
    "two digests": lambda _, reply: reply.with_header(
        "Docker-Content-Digest", "sha256:" + "0" * 64
    ),
    "no type": lambda _, reply: reply.without("Content-Type"),
    "schema 1": lambda _, reply: reply.without("Content-Type").with_header(
        "Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws"
    ),
    "web page": lambda _, reply: reply.without("Content-Type").with_header(
        "Content-Type", "text/html"
    ),
    "400": Reply(400),
    "403": Reply(403),
    "404": Reply(404),
    "405": Reply(405),
    "406": Reply(406),
    "500": Reply(500),
    "501": Reply(501),
    "no HTTP": Reply(raw=b"nonsense\r\n\r\n"),
}


@pytest.mark.parametrize("fault", HEAD_FAULTS)
async def test_t10_a_head_that_says_nothing_is_followed_by_a_get(
    fake, server, client, image, digest, fault
):
    fake.on("HEAD", "manifests", HEAD_FAULTS[fault])
    assert await client.resolve(image, ANONYMOUS) == digest
    assert server.seen[-1] == f"GET {V1}"


async def test_a_busy_registry_is_not_asked_by_get_instead(fake, server, client, image, digest):
    fake.on("HEAD", "manifests", error(429, "TOOMANYREQUESTS", "slow"))
    with pytest.raises(RateLimited, match="use credentials with a higher limit"):
        await client.resolve(image, ANONYMOUS)
    assert "GET" not in " ".join(server.seen)


async def test_a_missing_tag_is_named(server, client, image):
    with pytest.raises(NotFound) as raised:
        await client.resolve(image, ANONYMOUS)
    assert str(raised.value) == (
        f"{image}: not found: {server.address} answered HTTP 404: MANIFEST_UNKNOWN: manifest "
        "unknown; check the name, and that the credentials may read it"
    )
    assert raised.value.subject == image
    assert raised.value.retryable


async def test_t24_a_login_page_is_no_manifest(fake, client, image, digest):
    page = Reply(200, (("Content-Type", "text/html"),), b"<html><title>Sign in</title></html>")
    fake.on("*", "manifests", page)
    with pytest.raises(RegistryUnavailable, match="is a proxy or a login page in the way"):
        await client.resolve(image, ANONYMOUS)


async def test_a_manifest_is_read_by_digest(fake, server, client, image, digest):
    found = await client.manifest(image, digest, ANONYMOUS)
    assert found.descriptor.digest == digest
    assert found.index_digest is None
    assert digest_of(found.raw) == digest
    assert server.seen == [f"GET /v2/acme/demo/manifests/{digest}"]
    [base] = found.base_layers
    assert (base.digest, base.size) == (digest_of(b"layer"), 5)


async def test_t8_a_manifest_that_is_another_one_is_refused(fake, server, client, image, digest):
    other = fake.manifests[f"acme/demo/{fake.add_image('acme/demo', b'evil', tag=None)}"]
    fake.manifests[f"acme/demo/{digest}"] = other
    fake.on("GET", "manifests", with_digest(digest))
    with pytest.raises(IntegrityError, match=r"other content.*after 2 attempts") as raised:
        await client.manifest(image, digest, ANONYMOUS)
    assert str(raised.value).startswith(f"{image}@{digest}: ")
    assert len(server.requests) == 2


async def test_a_damaged_answer_is_asked_for_again_once(fake, server, client, image, digest):
    fake.on("GET", "manifests", lambda _, reply: dataclasses.replace(reply, body=b"{}"), times=1)
    assert (await client.manifest(image, digest, ANONYMOUS)).descriptor.digest == digest


async def test_a_manifest_may_come_compressed(fake, client, image, digest):
    def packed(_request, reply):
        body = gzip.compress(reply.body)
        return dataclasses.replace(reply, body=body).with_header("Content-Encoding", "gzip")

    fake.on("GET", "manifests", packed)
    assert (await client.manifest(image, digest, ANONYMOUS)).descriptor.digest == digest
    label = lambda _, reply: reply.with_header("Content-Encoding", "gzip")  # noqa: E731 - a fault
    fake.on("GET", "manifests", label)
    assert (await client.manifest(image, digest, ANONYMOUS)).descriptor.digest == digest


@pytest.mark.parametrize("declared", [True, False])
async def test_t12_a_huge_manifest_is_not_read(fake, image, digest, declared):
    async def forever(writer):
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()

    header = ("Content-Length", "10000000000") if declared else ("Transfer-Encoding", "chunked")
    fake.on("GET", "manifests", Reply(200, (header,), write=forever))
    async with connected(limits=dataclasses.replace(QUICK, manifest_bytes=100_000)) as client:
        with pytest.raises(LimitExceeded, match="the manifest is larger than 100000 bytes"):
            await client.manifest(image, digest, ANONYMOUS)


async def test_t18_a_sha512_digest_is_checked_with_sha512(fake, client, image, digest):
    kind, raw = fake.manifests["acme/demo/v1"]
    long = f"sha512:{hashlib.sha512(raw).hexdigest()}"
    fake.manifests[f"acme/demo/{long}"] = (kind, raw)
    assert (await client.manifest(image, long, ANONYMOUS)).descriptor.digest == long


def index_of(fake, *entries, tag="multi"):
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
    return fake.add_manifest("acme/demo", document, tag=tag, kind=OCI_INDEX)


def entry_of(fake, digest, platform=None, **changes):
    kind, raw = fake.manifests[f"acme/demo/{digest}"]
    entry = {"mediaType": kind, "digest": digest, "size": len(raw)}
    if platform:
        system, _, architecture = platform.partition("/")
        entry["platform"] = {"os": system, "architecture": architecture}
    return entry | changes


async def test_the_image_of_an_index_is_found(fake, server, client, image, digest):
    arm = fake.add_image("acme/demo", b"arm", tag=None)
    index = index_of(
        fake, entry_of(fake, arm, "linux/arm64"), entry_of(fake, digest, "linux/amd64")
    )
    multi = parse_reference(f"{server.address}/acme/demo:multi")
    assert await client.resolve(multi, ANONYMOUS) == index
    found = await client.manifest(multi, index, ANONYMOUS)
    assert found.descriptor.digest == digest
    assert found.index_digest == index
    assert found.warnings == ()


async def test_t21_an_index_for_other_platforms_is_used_with_a_warning(fake, client, image, digest):
    arm = fake.add_image("acme/demo", b"arm", tag=None)
    index = index_of(
        fake, entry_of(fake, arm, "linux/arm64"), entry_of(fake, digest, "linux/s390x")
    )
    found = await client.manifest(image, index, ANONYMOUS)
    assert found.descriptor.digest == arm
    assert found.warnings == ("package index has no linux/amd64 manifest, using linux/arm64",)


async def test_t20_indexes_nest_three_levels_deep(fake, client, image, digest):
    inner = digest
    for level in range(4):
        inner = index_of(fake, entry_of(fake, inner), tag=f"level{level}")
        if level < 3:
            assert (await client.manifest(image, inner, ANONYMOUS)).descriptor.digest == digest
    with pytest.raises(MalformedManifest, match="deeper than 3 levels"):
        await client.manifest(image, inner, ANONYMOUS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 7}, "the index says 7 bytes"),
        ({"mediaType": OCI_INDEX}, "calls the manifest something else"),
    ],
)
async def test_an_index_that_lies_about_its_images_is_refused(
    fake, client, image, digest, changes, message
):
    index = index_of(fake, entry_of(fake, digest, **changes))
    with pytest.raises(MalformedManifest, match=message):
        await client.manifest(image, index, ANONYMOUS)


async def test_t21_an_index_without_images_is_named(fake, client, image):
    index = index_of(fake)
    with pytest.raises(MalformedManifest, match=f"{index}: the index contains no image manifest"):
        await client.manifest(image, index, ANONYMOUS)


async def test_an_artifact_is_no_package(fake, client, image):
    config = {
        "mediaType": "application/vnd.cncf.helm.config.v1+json",
        "digest": digest_of(b""),
        "size": 0,
    }
    chart = fake.add_image("acme/demo", tag="chart", config=config)
    with pytest.raises(UnsupportedMedia, match="not a Crossplane package") as raised:
        await client.manifest(image, chart, ANONYMOUS)
    assert raised.value.final


async def test_t9_a_tag_that_moves_is_seen_at_the_next_resolve(fake, client, image, digest):
    first = await client.resolve(image, ANONYMOUS)
    second = fake.add_image("acme/demo", b"newer")
    assert (await client.manifest(image, first, ANONYMOUS)).descriptor.digest == digest
    assert await client.resolve(image, ANONYMOUS) == second


async def test_tags_are_collected_over_all_pages(fake, server, client, image):
    pages = {
        "n=1000": (["v1", "v2"], '</v2/acme/demo/tags/list?last=v2&n=1000>; rel="next"'),
        "last=v2&n=1000": (["v2", "v3", "bad tag", 5, "../x"], ""),
    }

    def page(request, _reply):
        tags, link = pages[request.target.partition("?")[2]]
        headers = (("Link", link),) if link else ()
        return Reply(200, headers, json.dumps({"name": "x", "tags": tags}).encode())

    fake.on("GET", "tags", page)
    assert await client.tags(image, ANONYMOUS) == ["v1", "v2", "v3"]
    assert len(server.requests) == 2


@pytest.mark.parametrize("body", [b'{"tags":null}', b'{"tags":[]}', b'{"name":"x"}'])
async def test_no_tags_are_no_error(fake, client, image, body):
    fake.on("GET", "tags", Reply(200, (("Content-Type", "text/plain"),), body))
    assert await client.tags(image, ANONYMOUS) == []


async def test_a_repository_without_tags_is_not_found(server, client, image):
    with pytest.raises(NotFound, match="NAME_UNKNOWN"):
        await client.tags(image, ANONYMOUS)


@pytest.mark.parametrize("body", [b"<html>", b'{"tags":5}', b'{"tags":["a"],"tags":["b"]}', b"[5"])
async def test_a_list_that_is_none_is_an_error(fake, client, image, body):
    fake.on("GET", "tags", Reply(200, body=body))
    with pytest.raises(RegistryError):
        await client.tags(image, ANONYMOUS)


async def test_t40_lists_of_tags_end(fake, image):
    limits = dataclasses.replace(QUICK, tags_pages=5, tags=30)
    link = '</v2/acme/demo/tags/list?n=1000>; rel="next"'
    fake.on("GET", "tags", Reply(200, (("Link", link),), b'{"tags":["a"]}'))
    async with connected(limits=limits) as client:
        with pytest.raises(LimitExceeded, match="in a circle"):
            await client.tags(image, ANONYMOUS)
        count = 0

        def endless(_request, _reply):
            nonlocal count
            count += 1
            link = f'</v2/acme/demo/tags/list?last=t{count}>; rel="next"'
            return Reply(200, (("Link", link),), b'{"tags":["a"]}')

        fake.on("GET", "tags", endless)
        with pytest.raises(LimitExceeded, match="5 pages long"):
            await client.tags(image, ANONYMOUS)
        assert count == 5
        many = json.dumps({"tags": [f"v{n}" for n in range(31)]}).encode()
        fake.on("GET", "tags", Reply(200, body=many))
        with pytest.raises(LimitExceeded, match="more than 30 tags"):
            await client.tags(image, ANONYMOUS)


async def test_t40_the_next_page_of_another_registry_is_not_asked_for(fake, server, client, image):
    link = '<http://127.0.0.2:1/v2/acme/demo/tags/list?last=a>; rel="next"'
    fake.on("GET", "tags", Reply(200, (("Link", link),), b'{"tags":["a"]}'))
    assert await client.tags(image, ANONYMOUS) == ["a"]
    assert len(server.requests) == 1


async def test_a_keychain_that_cannot_be_read_names_the_reference(client, image):
    class Broken:
        async def credentials_for(self, reference):
            raise AuthError("secret ns/x is broken")

    with pytest.raises(AuthError, match=f"{image}: secret ns/x is broken"):
        await client.resolve(image, Keychain((Broken(),)))


async def test_manifests_have_their_own_type(fake, client, image, digest):
    assert (await client.manifest(image, digest, ANONYMOUS)).descriptor.media_type == OCI_MANIFEST
