import pytest

from controller.registry.failures import AuthError, LimitExceeded, RegistryError
from tests.fakes.registry import (
    OCI_INDEX,
    OCI_MANIFEST,
    Reply,
    digest_of,
    error,
    index_reply,
)
from tests.registry.conftest import ANONYMOUS

SUBJECT = digest_of(b"subject")
TAG = f"acme/demo/{SUBJECT.replace(':', '-')}"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def referrer(name: str, kind: str = BUNDLE) -> dict[str, object]:
    return {
        "mediaType": OCI_MANIFEST,
        "digest": digest_of(name.encode()),
        "size": 10,
        "artifactType": kind,
    }


def index(*entries):
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}


def digests(found):
    return [entry.digest for entry in found]


async def test_referrers_are_listed_by_the_api(fake, server, client, image):
    fake.referrers = {SUBJECT: [referrer("a"), referrer("b", "application/sbom")]}
    found = await client.referrers(image, SUBJECT, ANONYMOUS)
    assert digests(found) == [digest_of(b"a"), digest_of(b"b")]
    assert found[0].artifact_type == BUNDLE
    assert server.seen == [f"GET /v2/acme/demo/referrers/{SUBJECT}"]


async def test_referrers_are_filtered_even_when_the_registry_does_not(fake, server, client, image):
    fake.referrers = {SUBJECT: [referrer("a"), referrer("b", "application/sbom")]}
    found = await client.referrers(image, SUBJECT, ANONYMOUS, artifact_type=BUNDLE)
    assert digests(found) == [digest_of(b"a")]
    assert server.seen[0].endswith(
        "?artifactType=application%2Fvnd.dev.sigstore.bundle.v0.3%2Bjson"
    )


async def test_no_referrers_are_no_error(fake, client, image):
    assert await client.referrers(image, SUBJECT, ANONYMOUS) == []
    fake.referrers = {}
    assert await client.referrers(image, SUBJECT, ANONYMOUS) == []


NO_API = {
    "404": None,
    "400": Reply(400),
    "405": Reply(405),
    "406": Reply(406),
    "501": Reply(501),
    "a web page": Reply(200, (("Content-Type", "text/html"),), b"<html>"),
    "some JSON": Reply(200, (("Content-Type", "application/json"),), b"{}"),
}


@pytest.mark.parametrize("kind", NO_API)
async def test_without_the_api_a_tag_stands_for_it(fake, server, client, image, kind):
    fake.manifests[TAG] = (OCI_INDEX, b"")
    digest = fake.add_manifest("acme/demo", index(referrer("a")), kind=OCI_INDEX)
    fake.manifests[TAG] = fake.manifests[f"acme/demo/{digest}"]
    answer = NO_API[kind]
    if answer is not None:
        fake.on("GET", "referrers", answer)
    assert digests(await client.referrers(image, SUBJECT, ANONYMOUS)) == [digest_of(b"a")]
    assert server.seen[-1] == f"GET /v2/{TAG.replace('demo/', 'demo/manifests/')}"


async def test_hidden_referrers_are_not_no_referrers(fake, client, image):
    fake.on("GET", "referrers", error(403, "DENIED", "no"))
    with pytest.raises(AuthError, match="DENIED"):
        await client.referrers(image, SUBJECT, ANONYMOUS)
    fake.rules.clear()
    fake.on("GET", "referrers", Reply(500))
    with pytest.raises(RegistryError, match="HTTP 500"):
        await client.referrers(image, SUBJECT, ANONYMOUS)


async def test_t40_referrers_come_in_pages_that_end(fake, client, image):
    def pages(request, _reply):
        at = int(request.target.rpartition("=")[2]) if "page=" in request.target else 0
        link = ("Link", f'</v2/acme/demo/referrers/{SUBJECT}?page={at + 1}>; rel="next"')
        return index_reply([referrer(f"r{at}")], *([link] if at < 2 else []))

    fake.on("GET", "referrers", pages)
    found = await client.referrers(image, SUBJECT, ANONYMOUS)
    assert digests(found) == [digest_of(f"r{at}".encode()) for at in range(3)]
    here = ("Link", f'</v2/acme/demo/referrers/{SUBJECT}>; rel="next"')
    fake.on("GET", "referrers", index_reply([referrer("a")], here))
    with pytest.raises(LimitExceeded, match="list of referrers is in a circle"):
        await client.referrers(image, SUBJECT, ANONYMOUS)
