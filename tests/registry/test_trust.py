import asyncio
import dataclasses
import os
import shutil
import ssl

import pytest

from controller.registry.failures import TLSError
from controller.registry.reference import parse_reference
from controller.registry.trust import Trust, folder_names
from tests.fakes.registry import FakeRegistry, serve
from tests.registry.certificates import Authority
from tests.registry.conftest import ANONYMOUS, QUICK, Pauses, connected


@pytest.fixture
def digest(fake):
    return fake.add_image("acme/demo", b"layer")


def authority(folder, name):
    path = folder / name
    path.mkdir()
    return Authority(path)


async def test_a_bundle_that_changes_is_believed_without_a_restart(fake, tmp_path, digest):
    old, new, pauses = authority(tmp_path, "old"), authority(tmp_path, "new"), Pauses()
    bundle = tmp_path / "bundle.pem"
    shutil.copy(old.bundle, bundle)
    async with (
        serve(fake, tls=old.server("127.0.0.1")) as before,
        serve(fake, tls=new.server("127.0.0.1")) as after,
        connected(pauses, ca_bundle=bundle) as client,
    ):
        first = parse_reference(f"{before.address}/acme/demo:v1")
        second = parse_reference(f"{after.address}/acme/demo:v1")
        assert await client.resolve(first, ANONYMOUS) == digest
        with pytest.raises(TLSError, match="--ca-bundle-path"):
            await client.resolve(second, ANONYMOUS)
        shutil.copy(new.bundle, tmp_path / "next.pem")
        (tmp_path / "next.pem").replace(bundle)
        pauses.now += 6
        assert await client.resolve(second, ANONYMOUS) == digest
        # What is believed no longer is asked for anew, on connections that are open, too.
        with pytest.raises(TLSError):
            await client.resolve(first, ANONYMOUS)
        assert before.open_now == 0


@pytest.mark.parametrize("change", ["gone", "garbage"])
async def test_a_bundle_that_breaks_leaves_the_last_one_in_force(fake, tmp_path, digest, change):
    known, pauses = Authority(tmp_path), Pauses()
    async with (
        serve(fake, tls=known.server("127.0.0.1")) as server,
        connected(pauses, ca_bundle=known.bundle) as client,
    ):
        image = parse_reference(f"{server.address}/acme/demo:v1")
        assert await client.resolve(image, ANONYMOUS) == digest
        if change == "gone":
            known.bundle.unlink()
        else:
            known.bundle.write_text("nothing")
        pauses.now += 6
        assert await client.resolve(image, ANONYMOUS) == digest


async def test_files_are_looked_at_now_and_then_only(tmp_path):
    known, now = Authority(tmp_path), [0.0]
    trust = Trust(known.bundle, clock=lambda: now[0])
    first = await trust.context("reg.example")
    os.utime(known.bundle, (1, 1))
    assert await trust.context("reg.example") is first
    now[0] = 6.0
    changed = await trust.context("reg.example")
    assert changed is not first
    now[0] = 12.0
    assert await trust.context("other.example") is changed


@pytest.mark.parametrize("pattern", ["{host}_{port}_", "{host}:{port}"])
async def test_a_registry_may_have_an_authority_of_its_own(fake, tmp_path, digest, pattern):
    own = Authority(tmp_path)
    folders = tmp_path / "certs.d"
    async with (
        serve(fake, tls=own.server("127.0.0.1")) as server,
        serve(fake, tls=own.server("127.0.0.1")) as other,
    ):
        host, _, port = server.address.partition(":")
        folder = folders / pattern.format(host=host, port=port)
        folder.mkdir(parents=True)
        shutil.copy(own.bundle, folder / "ca.crt")
        async with connected(certificates=folders) as client:
            image = parse_reference(f"{server.address}/acme/demo:v1")
            assert await client.resolve(image, ANONYMOUS) == digest
            elsewhere = parse_reference(f"{other.address}/acme/demo:v1")
            with pytest.raises(TLSError):
                await client.resolve(elsewhere, ANONYMOUS)


async def test_a_registry_may_ask_for_a_certificate(fake, tmp_path, digest):
    own = Authority(tmp_path)
    context = own.server("127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(own.bundle)
    certificate, key = own.issue("client.example")
    async with serve(fake, tls=context) as server:
        folder = tmp_path / "certs.d" / server.address
        folder.mkdir(parents=True)
        shutil.copy(own.bundle, folder / "ca.crt")
        shutil.copy(certificate, folder / "client.cert")
        shutil.copy(key, folder / "client.key")
        async with connected(certificates=tmp_path / "certs.d") as client:
            image = parse_reference(f"{server.address}/acme/demo:v1")
            assert await client.resolve(image, ANONYMOUS) == digest


@pytest.mark.parametrize("name", ["ca.crt", "client.cert"])
async def test_certificates_that_cannot_be_used_are_named(fake, tmp_path, name, digest):
    async with serve(fake) as server:
        folder = tmp_path / server.address
        folder.mkdir()
        (folder / name).write_text("nothing")
        async with connected(certificates=tmp_path) as client:
            image = parse_reference(f"{server.address}/acme/demo:v1")
            with pytest.raises(TLSError, match="--registry-certificates") as raised:
                await client.resolve(image, ANONYMOUS)
    assert name in str(raised.value)


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("reg.io", ("reg.io",)),
        ("REG.io:5000", ("reg.io_5000_", "reg.io:5000")),
        ("[::1]:5000", ("[::1]_5000_", "[::1]:5000")),
        ("[::1]", ("[::1]",)),
        ("..", ()),
        ("../etc", ()),
        ("a/b", ()),
        (".hidden", ()),
        ("", ()),
    ],
)
def test_the_folder_of_a_host_is_never_outside(host, names):
    assert folder_names(host) == names


async def test_an_answer_that_is_read_outlives_the_change_of_certificates(tmp_path):
    own, fake, pauses = Authority(tmp_path), FakeRegistry(), Pauses()
    digest = fake.add_image("acme/demo", b"layer")
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(_request, reply):
        started.set()
        await go_on.wait()
        return reply

    fake.on("HEAD", "v1", slowly, times=1)
    once = dataclasses.replace(QUICK, attempts=1)
    async with (
        serve(fake, tls=own.server("127.0.0.1")) as server,
        connected(pauses, limits=once, ca_bundle=own.bundle) as client,
    ):
        image = parse_reference(f"{server.address}/acme/demo:v1")
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(client.resolve(image, ANONYMOUS))
            await started.wait()
            os.utime(own.bundle, (1, 1))
            pauses.now += 6
            assert await client.resolve(image, ANONYMOUS) == digest
            go_on.set()
        assert first.result() == digest
