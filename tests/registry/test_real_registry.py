"""The client against real registries, and with other clients on the other side."""

import asyncio
import contextlib
import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.registry.client import RegistryClient
from controller.registry.credentials import Credential
from controller.registry.failures import AuthError, NotFound, TLSError
from controller.registry.media import OCI_INDEX, OCI_MANIFEST
from controller.registry.reference import parse_reference
from tests.fakes.registry import OCI_CONFIG, OCI_LAYER, FakeRegistry, Reply, digest_of, serve
from tests.lab import binaries
from tests.registry.certificates import Authority
from tests.registry.conftest import (
    ANONYMOUS,
    QUICK,
    connected,
    keychain,
    registry_programs,
    running_registry,
)

ALICE_LINE = "alice:$2y$04$JGd7HXoONtuFgOT2cBlWPeCJ32Bj9n75iidPOMlgrprq5pefmJVrW"  # alice, pw


def layer_of(name: str, content: bytes) -> bytes:
    """A compressed layer with one file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


LAYERS = (layer_of("package.yaml", os.urandom(2_000_000)), layer_of("more", b"small layer"))


def image_manifest(config, layers) -> bytes:
    def plain(blob, **more):
        return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size} | more

    first, *others = layers
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": plain(config),
        "layers": [plain(first, annotations={"io.crossplane.xpkg": "base"}), *map(plain, others)],
    }
    return json.dumps(document).encode()


async def push(client: RegistryClient, reference, keys=ANONYMOUS):
    # skopeo insists on a configuration that lists the layers.
    diffs = [digest_of(gzip.decompress(layer)) for layer in LAYERS]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diffs},
    }
    config_blob = await client.push_blob(
        reference, json.dumps(config).encode(), keys, media_type=OCI_CONFIG
    )
    layers = [
        await client.push_blob(reference, layer, keys, media_type=OCI_LAYER) for layer in LAYERS
    ]
    body = image_manifest(config_blob, layers)
    return body, await client.push_manifest(reference, body, OCI_MANIFEST, keys)


async def test_what_is_pushed_is_found_and_read(real_registry, tmp_path):
    reference = parse_reference(f"{real_registry}/acme/round-trip:v1")
    async with connected() as client:
        body, digest = await push(client, reference)
        assert await client.resolve(reference, ANONYMOUS) == digest
        found = await client.manifest(reference, digest, ANONYMOUS)
        assert found.raw == body
        for layer, content in zip(found.layers, LAYERS, strict=True):
            await client.download(reference, layer, ANONYMOUS, tmp_path / "layer")
            assert (tmp_path / "layer").read_bytes() == content
        assert await client.tags(reference, ANONYMOUS) == ["v1"]
        assert (await push(client, reference))[1] == digest


async def test_a_large_blob_is_pushed_in_chunks(real_registry, tmp_path):
    reference = parse_reference(f"{real_registry}/acme/chunks:v1")
    content = os.urandom(3_000_000)
    source = tmp_path / "source"
    source.write_bytes(content)
    limits = replace(QUICK, monolithic_bytes=1000, chunk_bytes=700_000)
    async with connected(limits=limits) as client:
        blob = await client.push_blob(reference, source, ANONYMOUS)
        await client.download(reference, blob, ANONYMOUS, tmp_path / "layer")
    assert (tmp_path / "layer").read_bytes() == content


async def test_t4_a_transfer_that_breaks_off_goes_on(real_registry, tmp_path):
    content = os.urandom(3_000_000)
    host, _, port = real_registry.partition(":")
    passed: list[int] = []

    handlers: set[asyncio.Task[None] | None] = set()

    async def torn(reader, writer):
        """Lead to the registry; each connection breaks after a million bytes."""
        handlers.add(asyncio.current_task())
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        passed.append(0)
        at = len(passed) - 1

        async def up():
            while data := await reader.read(65536):
                far_writer.write(data)
            far_writer.close()

        async def down():
            while passed[at] < 1_000_000 and (data := await far_reader.read(65536)):
                writer.write(data)
                await writer.drain()
                passed[at] += len(data)
            writer.close()

        with contextlib.suppress(OSError):
            await asyncio.gather(up(), down())
        for end in (writer, far_writer):
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()

    listener = await asyncio.start_server(torn, "127.0.0.1", 0)
    near = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener, connected() as client:
        direct = parse_reference(f"{real_registry}/acme/torn:v1")
        blob = await client.push_blob(direct, content, ANONYMOUS)
        through = parse_reference(f"{near}/acme/torn:v1")
        await client.download(through, blob, ANONYMOUS, tmp_path / "layer")
    await asyncio.gather(*filter(None, handlers))
    assert (tmp_path / "layer").read_bytes() == content
    # Hardly more than the blob crossed: what had come was not asked for again.
    assert sum(passed) < 3_800_000


async def test_a_manifest_without_signatures_has_no_referrers(real_registry):
    reference = parse_reference(f"{real_registry}/acme/unsigned:v1")
    async with connected() as client:
        _, digest = await push(client, reference)
        assert await client.referrers(reference, digest, ANONYMOUS) == []
        entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": 1, "artifactType": "x/y"}
        body, subject = await push(client, replace(reference, tag="v2"))
        entry["size"] = len(body)
        index = json.dumps(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
        ).encode()
        tag = replace(reference, tag=subject.replace(":", "-"))
        await client.push_manifest(tag, index, OCI_INDEX, ANONYMOUS)
        found = await client.referrers(reference, subject, ANONYMOUS, artifact_type="x/y")
    assert [entry.digest for entry in found] == [digest]


async def test_an_index_is_pushed_and_its_image_found(real_registry):
    reference = parse_reference(f"{real_registry}/acme/index:v1")
    async with connected() as client:
        body, digest = await push(client, replace(reference, tag="arm"))
        entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(body)}
        entry["platform"] = {"os": "linux", "architecture": "arm64"}
        index = json.dumps(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
        ).encode()
        pushed = await client.push_manifest(reference, index, OCI_INDEX, ANONYMOUS)
        assert await client.resolve(reference, ANONYMOUS) == pushed
        found = await client.manifest(reference, pushed, ANONYMOUS)
        assert (found.descriptor.digest, found.index_digest) == (digest, pushed)


async def test_a_blob_is_mounted_from_another_repository(real_registry, tmp_path):
    async with connected() as client:
        first = parse_reference(f"{real_registry}/acme/source:v1")
        blob = await client.push_blob(first, LAYERS[0], ANONYMOUS)
        second = parse_reference(f"{real_registry}/acme/target:v1")
        await client.push_blob(second, LAYERS[0], ANONYMOUS, mount_from="acme/source")
        await client.download(second, blob, ANONYMOUS, tmp_path / "layer")


async def test_what_is_missing_is_not_found(real_registry, tmp_path):
    async with connected() as client:
        missing = parse_reference(f"{real_registry}/acme/missing:v1")
        for action in (client.resolve, client.tags):
            with pytest.raises(NotFound, match="answered HTTP 404"):
                await action(missing, ANONYMOUS)
        here = parse_reference(f"{real_registry}/acme/here:v1")
        await push(client, here)
        with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
            await client.resolve(replace(here, tag="v2"), ANONYMOUS)
        gone = f"sha256:{'0' * 64}"
        with pytest.raises(NotFound):
            await client.manifest(here, gone, ANONYMOUS)


async def test_many_tags_come_in_pages(real_registry, monkeypatch):
    monkeypatch.setattr("controller.registry.listing.TAGS_ASKED", 3)
    reference = parse_reference(f"{real_registry}/acme/tags:v1")
    async with connected() as client:
        body, _ = await push(client, reference)
        for number in range(10):
            tagged = replace(reference, tag=f"v1.{number}")
            await client.push_manifest(tagged, body, OCI_MANIFEST, ANONYMOUS)
        tags = await client.tags(reference, ANONYMOUS)
    assert sorted(tags) == sorted(["v1", *(f"v1.{number}" for number in range(10))])


def tool(name: str) -> str:
    if name == "crane" and "crane" not in binaries.absent(["crane"]):
        return str(binaries.resolve(["crane"], announce=print)["crane"])
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


def run(*command: str) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.strip()


async def test_crane_reads_what_we_push(real_registry, tmp_path):
    crane = tool("crane")
    reference = parse_reference(f"{real_registry}/acme/for-crane:v1")
    async with connected() as client:
        body, digest = await push(client, reference)
    assert await asyncio.to_thread(run, crane, "digest", str(reference)) == digest.encode()
    assert await asyncio.to_thread(run, crane, "manifest", str(reference)) == body
    await asyncio.to_thread(run, crane, "validate", "--remote", str(reference))


async def test_skopeo_reads_what_we_push_and_we_read_what_skopeo_pushes(real_registry, tmp_path):
    skopeo = tool("skopeo")
    reference = parse_reference(f"{real_registry}/acme/for-skopeo:v1")
    async with connected() as client:
        _, digest = await push(client, reference)
        copy = replace(reference, repository="acme/by-skopeo")
        command = [skopeo, "copy", "--src-tls-verify=false", "--dest-tls-verify=false"]
        command += ["--preserve-digests", f"docker://{reference}", f"docker://{copy}"]
        await asyncio.to_thread(run, *command)
        assert await client.resolve(copy, ANONYMOUS) == digest
        found = await client.manifest(copy, digest, ANONYMOUS)
        await client.download(copy, found.base_layers[0], ANONYMOUS, tmp_path / "layer")
        assert (tmp_path / "layer").read_bytes() == LAYERS[0]


@pytest.fixture(scope="module", params=["distribution v3", "docker-registry 2.8"])
def protected_registry(request, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A registry with TLS and passwords."""
    programs = registry_programs()
    if request.param not in programs:
        pytest.skip(f"{request.param} is not installed")
    folder = tmp_path_factory.mktemp("protected")
    authority = Authority(folder)
    certificate, key = authority.issue("127.0.0.1")
    users = folder / "htpasswd"
    users.write_text(ALICE_LINE)
    extra = f"tls: {{certificate: {certificate}, key: {key}}}"
    auth = f"auth: {{htpasswd: {{realm: tests, path: {users}}}}}\n"
    with running_registry(
        programs[request.param], folder / "registry", extra, more=auth
    ) as address:
        yield address, authority.bundle


async def test_a_protected_registry_over_tls(protected_registry, tmp_path):
    address, bundle = protected_registry
    reference = parse_reference(f"{address}/acme/private:v1")
    alice = Credential("alice", "pw", origin="secret ns/alice")
    wrong = Credential("alice", "no", origin="secret ns/wrong")
    async with connected(ca_bundle=bundle) as client:
        _, digest = await push(client, reference, keychain(wrong, alice))
        assert await client.resolve(reference, keychain(alice)) == digest
        with pytest.raises(AuthError, match="tried secret ns/wrong"):
            await client.resolve(reference, keychain(wrong))
        with pytest.raises(AuthError, match="no credentials matched"):
            await client.resolve(reference, ANONYMOUS)
    async with connected() as client:
        with pytest.raises(TLSError, match="add its authority with --ca-bundle-path"):
            await client.resolve(reference, ANONYMOUS)


async def test_a_registry_that_redirects_to_its_store(tmp_path):
    programs = registry_programs()
    if "docker-registry 2.8" not in programs:
        pytest.skip("docker-registry 2.8 is not installed")
    store = FakeRegistry()

    async def blobs(request):
        path = tmp_path / "registry" / "data" / request.target.partition("?")[0].lstrip("/")
        return Reply(200, body=path.read_bytes()) if path.is_file() else Reply(404)

    store.on("*", "", lambda request, _: blobs(request))
    async with serve(store, host="127.0.0.2") as elsewhere:
        redirect = (
            "middleware: {storage: [{name: redirect, options: "
            f"{{baseurl: 'http://{elsewhere.address}/'}}}}]}}\n"
        )
        with running_registry(
            programs["docker-registry 2.8"], tmp_path / "registry", more=redirect
        ) as address:
            reference = parse_reference(f"{address}/acme/redirected:v1")
            async with connected() as client:
                _, digest = await push(client, reference)
                found = await client.manifest(reference, digest, ANONYMOUS)
                await client.download(reference, found.layers[0], ANONYMOUS, tmp_path / "layer")
        assert (tmp_path / "layer").read_bytes() == LAYERS[0]
        assert any("/blobs/sha256/" in request.target for request in elsewhere.requests)
        assert all(request.authorization is None for request in elsewhere.requests)
