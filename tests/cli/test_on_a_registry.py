"""``build`` and ``push`` against a real registry."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from controller.cli.session import RegistryOptions, connect_registries
from controller.xpkg.archive import Archive

pytestmark = pytest.mark.lab

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"


@pytest.fixture
def target(lab, unique_name):
    """A reference in the lab's registry that no other test uses."""
    return f"{lab.registry}/{unique_name}/provider:v1.0.0"


@pytest.fixture
def crossdock(crossdock, tmp_path):
    """Run one command line in a folder that holds one built package."""
    shutil.copytree(EXAMPLES / "provider-demo", tmp_path, dirs_exist_ok=True)
    answer = crossdock("build")
    assert answer.code == 0, answer.err

    return lambda *argv, **more: crossdock(*argv, registries=connect_registries, **more)


@pytest.fixture
def digest(crossdock, tmp_path):
    """The digest of that package, as the build promised it."""
    with Archive(next(tmp_path.glob("*.xpkg"))) as archive:
        return archive.manifest().digest


@pytest.mark.parametrize("words", [["push"], ["push", "provider"], ["xpkg", "push"]])
def test_a_push_prints_the_digest_that_build_promised(crossdock, target, digest, words):
    answer = crossdock(*words, target)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"{target}@{digest}\n"


async def test_the_registry_serves_what_was_pushed(make_session, target, digest, tmp_path):
    from controller.cli.push import credentials, open_package, push_target, upload

    session = make_session(registries=connect_registries)
    file = next(tmp_path.glob("*.xpkg"))
    reference = push_target(target)
    async with session.registries(RegistryOptions()) as client:
        keychain = credentials(session)
        with open_package(file, "Provider", session) as archive, session.progress() as line:
            stored = await upload(archive, reference, client=client, keychain=keychain, line=line)
        assert await client.resolve(reference, keychain) == stored == digest
        manifest = await client.manifest(reference, digest, keychain)
        layer = manifest.layers[0]
        assert layer.annotations == {"io.crossplane.xpkg": "base"}
        await client.download(reference, layer, keychain, tmp_path / "layer")
        assert (tmp_path / "layer").stat().st_size == layer.size


def test_what_the_registry_has_is_not_sent_again(lab, crossdock, target):
    crossdock("push", target)
    mark = lab.mark()
    assert crossdock("push", target).code == 0
    repository = target.removeprefix(f"{lab.registry}/").rpartition(":")[0]
    sent = [
        (request.method, request.path)
        for request in lab.registry_requests(mark)
        if repository in request.path and request.method in {"POST", "PUT", "PATCH"}
    ]
    assert sent == [("PUT", f"/v2/{repository}/manifests/v1.0.0")]


def test_another_kind_than_stated_is_not_pushed(lab, crossdock, target):
    mark = lab.mark()
    answer = crossdock("push", "configuration", target)
    assert answer.code == 1
    assert "holds a Provider, not a Configuration: push it as provider" in answer.err
    repository = target.removeprefix(f"{lab.registry}/").rpartition(":")[0]
    assert [r for r in lab.registry_requests(mark) if repository in r.path] == []


def test_a_terminal_sees_how_far_the_push_has_come(crossdock, target, digest):
    answer = crossdock("push", target, terminal=True)
    assert answer.out == f"{target}@{digest}\n"
    assert "part 1 of 2" in answer.err
    assert answer.err.endswith("\r\x1b[K")


def test_a_registry_that_does_not_answer_is_named(crossdock):
    answer = crossdock("push", "127.0.0.1:1/acme/provider:v1")
    assert answer.code == 1
    assert answer.err.startswith("crossdock: error: 127.0.0.1:1/acme/provider:v1: 127.0.0.1:1 ")
