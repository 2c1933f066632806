import dataclasses
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.registry.failures import RegistryError, StorageError
from controller.registry.session import chunk_size, committed
from tests.fakes.registry import Reply, digest_of, error
from tests.registry.conftest import ANONYMOUS, QUICK, connected

CONTENT = os.urandom(1_000_000)
DIGEST = digest_of(CONTENT)
SMALL = dataclasses.replace(QUICK, monolithic_bytes=1000, chunk_bytes=300_000)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "layer"
    path.write_bytes(CONTENT)
    return path


def methods(server):
    return [request.method for request in server.requests]


def chunks(server):
    sent = (request for request in server.requests if request.method == "PATCH")
    return [request.headers["content-range"] for request in sent]


async def test_a_large_blob_is_pushed_in_chunks(fake, server, image, path):
    async with connected(limits=SMALL) as client:
        await client.push_blob(image, path, ANONYMOUS)
    assert fake.blobs[DIGEST] == CONTENT
    assert methods(server) == ["HEAD", "POST", "PATCH", "PATCH", "PATCH", "PATCH", "PUT"]
    assert chunks(server) == ["0-299999", "300000-599999", "600000-899999", "900000-999999"]
    assert server.requests[-1].headers["content-length"] == "0"


@pytest.mark.parametrize("status", [411, 413])
@pytest.mark.parametrize("as_file", [True, False])
async def test_what_is_too_large_at_once_is_sent_in_chunks(
    fake, server, image, path, status, as_file
):
    def whole(request, reply):
        return Reply(status) if request.body else reply

    fake.on("PUT", "uploads", whole)
    async with connected(limits=dataclasses.replace(QUICK, chunk_bytes=600_000)) as client:
        await client.push_blob(image, path if as_file else CONTENT, ANONYMOUS)
    assert fake.blobs[DIGEST] == CONTENT
    assert methods(server) == ["HEAD", "POST", "PUT", "POST", "PATCH", "PATCH", "PUT"]


async def test_the_registry_may_ask_for_larger_chunks(fake, server, image, path):
    wish = ("OCI-Chunk-Min-Length", "700000")
    fake.on("POST", "uploads", lambda _, reply: reply.with_header(*wish))
    async with connected(limits=SMALL) as client:
        await client.push_blob(image, path, ANONYMOUS)
    assert chunks(server) == ["0-699999", "700000-999999"]


async def test_a_broken_chunk_goes_on_where_the_registry_is(fake, server, image, path, pauses):
    broken = 0

    def after_storing(request, reply):
        nonlocal broken
        broken += 1
        return Reply(raw=b"") if broken == 2 else reply

    fake.on("PATCH", "uploads", after_storing)
    async with connected(pauses, limits=SMALL) as client:
        await client.push_blob(image, path, ANONYMOUS)
    assert fake.blobs[DIGEST] == CONTENT
    # The second chunk had arrived although its answer had not: it is not sent again.
    assert chunks(server) == ["0-299999", "300000-599999", "600000-899999", "900000-999999"]
    assert methods(server).count("POST") == 1
    assert methods(server).count("GET") == 1


async def test_a_chunk_at_the_wrong_place_is_put_right(fake, server, image, path, pauses):
    fake.on("PATCH", "uploads", Reply(416), times=1)
    seen = []

    def lose(request, reply):
        seen.append(request.target)
        return reply

    fake.on("GET", "uploads", lose)
    async with connected(pauses, limits=SMALL) as client:
        await client.push_blob(image, path, ANONYMOUS)
    assert len(seen) == 1
    assert pauses.taken == [0.0]
    assert fake.blobs[DIGEST] == CONTENT


async def test_an_upload_that_is_forgotten_starts_anew(fake, server, image, path, pauses):
    fake.on("PATCH", "uploads", error(503, "UNAVAILABLE", "busy"), times=1)
    fake.on("GET", "uploads", error(404, "BLOB_UPLOAD_INVALID", "gone"))
    async with connected(pauses, limits=SMALL) as client:
        await client.push_blob(image, path, ANONYMOUS)
    assert fake.blobs[DIGEST] == CONTENT
    assert methods(server).count("POST") == 2
    assert methods(server).count("DELETE") == 1


async def test_chunks_that_never_fit_end_and_are_forgotten(fake, server, image, path, pauses):
    def keep_nothing(request, _reply):
        fake.parts[request.target.partition("?")[0]] = b""
        return Reply(416)

    fake.on("PATCH", "uploads", keep_nothing)
    async with connected(pauses, limits=SMALL) as client:
        with pytest.raises(RegistryError, match="HTTP 416"):
            await client.push_blob(image, path, ANONYMOUS)
    assert methods(server)[-1] == "DELETE"
    assert len(chunks(server)) == SMALL.resumes + 1
    assert fake.parts == {}


async def test_a_file_that_shrinks_is_named(fake, image, path):
    def cut(_request, reply):
        os.truncate(path, 10)
        return reply

    fake.on("POST", "uploads", cut)
    async with connected(limits=QUICK) as client:
        with pytest.raises(StorageError, match="became shorter while it was read"):
            await client.push_blob(image, path, ANONYMOUS)


async def test_a_mount_asks_for_the_right_to_read_there(fake, server, client, image):
    scopes = []

    async def realm(request):
        scopes.append(request.target)
        return Reply(200, (), b'{"token":"t"}')

    from tests.fakes.registry import bearer, serve

    async with serve(realm) as tokens:
        asks = bearer(f"http://{tokens.address}/token")
        fake.on("*", "", lambda r, reply: reply if r.authorization == "Bearer t" else asks)
        await client.push_blob(image, b"content", ANONYMOUS, mount_from="acme/base")
    assert any("repository%3Aacme%2Fbase%3Apull" in target for target in scopes)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0-99", 100),
        ("bytes=0-99", 100),
        ("0-0", 0),
        ("", None),
        ("5-9", None),
        ("0-x", None),
        ("0-" + "9" * 30, None),
    ],
)
def test_how_much_an_upload_has(text, size):
    assert committed(text) == size


@pytest.mark.parametrize(
    ("text", "size"), [("", 10), ("5", 10), ("20", 20), ("x", 10), ("9" * 12, 10), ("-1", 10)]
)
def test_chunks_are_as_large_as_the_registry_asks_within_reason(text, size):
    assert chunk_size(text, 10) == size


@given(st.text(max_size=40))
def test_any_range_is_a_size_or_nothing(text):
    size = committed(text)
    assert size is None or 0 <= size < 10**19
    assert 10 <= chunk_size(text, 10) <= 512 * 1024 * 1024
