import dataclasses
import os

import pytest

from controller.registry.failures import (
    AuthError,
    IntegrityError,
    LimitExceeded,
    PolicyViolation,
    RegistryError,
    RegistryUnavailable,
    StorageError,
)
from tests.fakes.registry import OCI_MANIFEST, FakeRegistry, Reply, basic, digest_of, error, serve
from tests.registry.conftest import ANONYMOUS, QUICK, connected, keychain
from tests.registry.test_tokens import ALICE

CONTENT = os.urandom(3_000_000)


async def test_a_blob_is_pushed_in_three_requests(fake, server, client, image):
    pushed = await client.push_blob(image, CONTENT, ANONYMOUS, media_type="application/x")
    assert (pushed.media_type, pushed.digest, pushed.size) == (
        "application/x",
        digest_of(CONTENT),
        len(CONTENT),
    )
    assert fake.blobs[pushed.digest] == CONTENT
    assert server.seen == [
        f"HEAD /v2/acme/demo/blobs/{pushed.digest}",
        "POST /v2/acme/demo/blobs/uploads/",
        f"PUT /v2/acme/demo/blobs/uploads/1?_state=a%2Bb&digest={pushed.digest}",
    ]
    assert server.requests[-1].headers["content-length"] == str(len(CONTENT))


async def test_a_file_is_pushed_without_being_in_memory(fake, client, image, tmp_path):
    path = tmp_path / "layer"
    path.write_bytes(CONTENT)
    pushed = await client.push_blob(image, path, ANONYMOUS)
    assert fake.blobs[pushed.digest] == CONTENT


async def test_a_blob_that_is_there_is_not_pushed(fake, server, client, image):
    fake.add_blob(CONTENT)
    await client.push_blob(image, CONTENT, ANONYMOUS)
    assert len(server.requests) == 1


async def test_a_blob_of_another_repository_is_mounted(fake, server, client, image):
    fake.on("POST", "mount=", Reply(201))
    await client.push_blob(image, CONTENT, ANONYMOUS, mount_from="acme/base")
    digest = digest_of(CONTENT)
    assert server.seen[-1] == (f"POST /v2/acme/demo/blobs/uploads/?mount={digest}&from=acme/base")


@pytest.mark.parametrize("answer", [None, Reply(405), Reply(404)])
async def test_a_mount_that_is_not_possible_becomes_an_upload(fake, client, image, answer):
    if answer is not None:
        fake.on("POST", "mount=", answer)
    await client.push_blob(image, CONTENT, ANONYMOUS, mount_from="acme/base")
    assert digest_of(CONTENT) in fake.blobs


@pytest.mark.parametrize("status", [403, 405])
async def test_a_registry_that_forbids_looking_is_pushed_to(fake, client, image, status):
    fake.on("HEAD", "blobs", Reply(status))
    await client.push_blob(image, CONTENT, ANONYMOUS)
    assert digest_of(CONTENT) in fake.blobs


async def test_an_upload_that_breaks_starts_anew(fake, server, client, image, tmp_path):
    fake.on("PUT", "uploads", error(503, "UNAVAILABLE", "busy"), times=1)
    path = tmp_path / "layer"
    path.write_bytes(CONTENT)
    await client.push_blob(image, path, ANONYMOUS)
    methods = [request.method for request in server.requests]
    assert methods == ["HEAD", "POST", "PUT", "POST", "PUT"]


async def test_a_refused_upload_tells_why(fake, client, image):
    fake.on("PUT", "uploads", error(400, "DIGEST_INVALID", "wrong digest"))
    with pytest.raises(RegistryError, match=f"{image}: .*DIGEST_INVALID: wrong digest"):
        await client.push_blob(image, CONTENT, ANONYMOUS)


async def test_pushing_asks_for_the_right_to_push(fake, server, client, image):
    fake.on("*", "", lambda r, reply: reply if r.authorization == ALICE.basic else basic())
    with pytest.raises(AuthError, match="no credentials matched"):
        await client.push_blob(image, CONTENT, ANONYMOUS)
    await client.push_blob(image, CONTENT, keychain(ALICE))
    assert digest_of(CONTENT) in fake.blobs


@pytest.mark.parametrize(
    ("location", "kind", "message"),
    [
        (None, RegistryUnavailable, "does not say where to upload to"),
        ("http://[::1", RegistryUnavailable, "does not say where"),
        ("http://169.254.169.254/put", PolicyViolation, r"169\.254\.169\.254"),
        ("file:///etc/passwd", PolicyViolation, "no web URL"),
    ],
)
async def test_t46_a_place_that_cannot_be_uploaded_to(fake, client, image, location, kind, message):
    headers = (("Location", location),) if location else ()
    fake.on("POST", "uploads", Reply(202, headers))
    with pytest.raises(kind, match=message):
        await client.push_blob(image, CONTENT, ANONYMOUS)


async def test_t46_an_upload_elsewhere_carries_no_credentials(fake, server, client, image):
    store = FakeRegistry()
    fake.on("*", "", lambda r, reply: reply if r.authorization == ALICE.basic else basic())
    async with serve(store, host="127.0.0.2") as elsewhere:
        to = f"http://{elsewhere.address}/v2/acme/demo/blobs/uploads/9?sig=secret"

        def away(request, _reply):
            allowed = request.authorization == ALICE.basic
            return Reply(202, (("Location", to),)) if allowed else basic()

        fake.on("POST", "uploads", away)
        await client.push_blob(image, CONTENT, keychain(ALICE))
        assert [request.authorization for request in elsewhere.requests] == [None]
        assert store.blobs[digest_of(CONTENT)] == CONTENT


async def test_a_file_that_is_gone_is_named(client, image, tmp_path):
    with pytest.raises(StorageError, match=r"cannot read .*gone: No such file"):
        await client.push_blob(image, tmp_path / "gone", ANONYMOUS)


async def test_a_file_that_disappears_meanwhile_is_named(fake, client, image, tmp_path):
    path = tmp_path / "layer"
    path.write_bytes(CONTENT)

    def remove(_request, reply):
        path.unlink()
        return reply

    fake.on("POST", "uploads", remove)
    with pytest.raises(StorageError, match=r"cannot read .*layer"):
        await client.push_blob(image, path, ANONYMOUS)


BODY = b'{"schemaVersion":2}'


async def test_a_manifest_is_pushed_under_its_tag(fake, server, client, image):
    digest = await client.push_manifest(image, BODY, OCI_MANIFEST, ANONYMOUS)
    assert digest == digest_of(BODY)
    assert fake.manifests["acme/demo/v1"] == (OCI_MANIFEST, BODY)
    [request] = server.requests
    assert request.headers["content-type"] == OCI_MANIFEST


async def test_a_manifest_is_pushed_under_its_digest(fake, server, client, image):
    pinned = dataclasses.replace(image.with_digest(digest_of(BODY)), tag=None)
    await client.push_manifest(pinned, BODY, OCI_MANIFEST, ANONYMOUS)
    assert server.seen == [f"PUT /v2/acme/demo/manifests/{digest_of(BODY)}"]


async def test_a_manifest_of_another_digest_is_not_sent(server, client, image):
    pinned = image.with_digest(digest_of(b"other"))
    with pytest.raises(IntegrityError, match="the manifest has the digest"):
        await client.push_manifest(pinned, BODY, OCI_MANIFEST, ANONYMOUS)
    assert server.requests == []


async def test_a_registry_that_stored_another_manifest_is_found_out(fake, client, image):
    wrong = Reply(201, (("Docker-Content-Digest", digest_of(b"other")),))
    fake.on("PUT", "manifests", wrong)
    with pytest.raises(IntegrityError, match="stored another manifest"):
        await client.push_manifest(image, BODY, OCI_MANIFEST, ANONYMOUS)
    fake.on("PUT", "manifests", Reply(201))
    assert await client.push_manifest(image, BODY, OCI_MANIFEST, ANONYMOUS) == digest_of(BODY)


async def test_a_manifest_that_nobody_would_read_is_not_sent(server, image):
    async with connected(limits=dataclasses.replace(QUICK, manifest_bytes=10)) as client:
        with pytest.raises(LimitExceeded, match="larger than 10 bytes"):
            await client.push_manifest(image, BODY, OCI_MANIFEST, ANONYMOUS)
    assert server.requests == []


async def test_a_refused_manifest_tells_why(fake, client, image):
    fake.on("PUT", "manifests", error(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown"))
    with pytest.raises(RegistryError, match="MANIFEST_BLOB_UNKNOWN: blob unknown"):
        await client.push_manifest(image, BODY, OCI_MANIFEST, ANONYMOUS)
