import asyncio
import base64
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from controller.registry.credentials import Keychain
from controller.registry.dockerconfig import DockerConfig, docker_keychain
from controller.registry.failures import AuthError
from controller.registry.reference import parse_reference

LOGIN = {"auth": base64.b64encode(b"user:pw").decode()}


def ref(text="reg.io/acme/demo:v1"):
    return parse_reference(text, strict=False)


def config(folder: Path, content: object, name: str = ".docker/config.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


async def names(env, home, text="reg.io/acme/demo:v1", *, helpers=False):
    keys = docker_keychain(env, home, helpers=helpers)
    return [c.username or c.identity_token for c in await keys.credentials_for(ref(text))]


async def test_no_file_means_no_credentials(tmp_path):
    assert await names({}, tmp_path) == []


async def test_the_stored_login_is_found_and_may_be_given_up(tmp_path):
    path = config(tmp_path, {"auths": {"reg.io": LOGIN}})
    keys = docker_keychain({}, tmp_path)
    [found] = await keys.credentials_for(ref())
    assert (found.username, found.password, found.explicit) == ("user", "pw", False)
    assert str(path) in found.origin


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("reg.io", "reg.io/a:v1"),
        ("https://reg.io", "reg.io/a:v1"),
        ("https://reg.io/v2/", "reg.io/a:v1"),
        ("reg.io:5000", "reg.io:5000/a:v1"),
        ("reg.io/acme", "reg.io/acme/demo:v1"),
        ("reg.io/acme/demo", "reg.io/acme/demo:v1"),
        ("https://index.docker.io/v1/", "ubuntu"),
        ("docker.io", "ubuntu"),
        ("index.docker.io", "acme/demo"),
    ],
)
async def test_the_file_is_searched_under_all_spellings(tmp_path, key, text):
    config(tmp_path, {"auths": {key: LOGIN}})
    assert await names({}, tmp_path, text) == ["user"]


@pytest.mark.parametrize(
    ("key", "text"), [("reg.io", "reg.io:5000/a:v1"), ("reg.i", "reg.io/a:v1")]
)
async def test_other_hosts_get_nothing(tmp_path, key, text):
    config(tmp_path, {"auths": {key: LOGIN}})
    assert await names({}, tmp_path, text) == []


async def test_files_are_looked_for_in_order(tmp_path):
    def login(name):
        return {"auths": {"reg.io": {"username": name, "password": "x"}}}

    config(tmp_path, login("podman home"), ".config/containers/auth.json")
    assert await names({}, tmp_path) == ["podman home"]
    env = {"XDG_RUNTIME_DIR": str(tmp_path / "run")}
    config(tmp_path, login("podman run"), "run/containers/auth.json")
    assert await names(env, tmp_path) == ["podman run"]
    env["REGISTRY_AUTH_FILE"] = str(config(tmp_path, login("named"), "named.json"))
    assert await names(env, tmp_path) == ["named"]
    config(tmp_path, login("docker"))
    assert await names(env, tmp_path) == ["docker"]
    env["DOCKER_CONFIG"] = str(config(tmp_path, login("elsewhere"), "d/config.json").parent)
    assert await names(env, tmp_path) == ["elsewhere"]


@pytest.mark.parametrize("content", ["{", "[]", '{"auths": [1]}', '{"auths": {"reg.io": "x"}}', ""])
async def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path, content):
    path = config(tmp_path, content)
    with pytest.raises(AuthError, match=str(path)):
        await names({}, tmp_path)


def helper(folder: Path, body: str, name="test", mode=0o755) -> dict[str, str]:
    """A credential helper in Python, and the environment that finds it."""
    folder.mkdir(exist_ok=True)
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!{sys.executable}\nimport sys, time, os\n{body}\n")
    path.chmod(mode)
    return {"PATH": str(folder)}


ANSWER = 'print(\'{"ServerURL":"x","Username":"%s","Secret":"%s"}\')'


async def test_a_helper_is_asked_for_its_server(tmp_path):
    body = "assert sys.argv[1] == 'get'\nserver = sys.stdin.read()\n"
    body += 'print(\'{"Username":"%s","Secret":"x"}\' % server)'
    env = helper(tmp_path / "bin", body)
    config(tmp_path, {"credHelpers": {"reg.io": "test"}})
    assert await names(env, tmp_path, helpers=True) == ["reg.io"]
    config(tmp_path, {"credsStore": "test"})
    assert await names(env, tmp_path, "ubuntu", helpers=True) == ["https://index.docker.io/v1/"]


async def test_helpers_are_run_only_where_that_was_asked_for(tmp_path):
    env = helper(tmp_path / "bin", ANSWER % ("helper", "x"))
    config(tmp_path, {"credsStore": "test", "auths": {"reg.io": LOGIN}})
    assert await names(env, tmp_path) == ["user"]
    assert await names(env, tmp_path, helpers=True) == ["helper"]


async def test_a_helper_may_give_an_identity_token_or_nothing(tmp_path):
    config(tmp_path, {"credsStore": "test"})
    env = helper(tmp_path / "bin", ANSWER % ("<token>", "identity"))
    assert await names(env, tmp_path, helpers=True) == ["identity"]
    body = "print('credentials not found in native keychain'); sys.exit(1)"
    env = helper(tmp_path / "bin", body)
    assert await names(env, tmp_path, helpers=True) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('oops \\x1b[31m secretword'); sys.exit(3)", "exit code 3"),
        ("print('no json')", "no credential"),
        ("print('{}')", "no credential"),
        ("print('[1]')", "no credential"),
        ('print(\'{"Username":1,"Secret":"x"}\')', "no credential"),
        ("sys.stdout.write('x' * 10_000_000)", "more than 65536 bytes"),
    ],
)
async def test_a_broken_helper_is_an_error_without_its_words(tmp_path, body, message):
    env = helper(tmp_path / "bin", body)
    config(tmp_path, {"credsStore": "test"})
    with pytest.raises(AuthError, match=message) as raised:
        await names(env, tmp_path, helpers=True)
    assert "secretword" not in str(raised.value)


async def test_a_helper_that_hangs_is_ended_with_its_children(tmp_path):
    marker = tmp_path / "pid"
    body = f"open({str(marker)!r}, 'w').write(str(os.getpid()))\n"
    body += "if os.fork() == 0:\n    time.sleep(60)\ntime.sleep(60)"
    env = helper(tmp_path / "bin", body)
    path = config(tmp_path, {"credsStore": "test"})
    keys = Keychain((DockerConfig((path,), env["PATH"], env, helper_seconds=1.0),))
    with pytest.raises(AuthError, match="no answer in 1 s"):
        await keys.credentials_for(ref())
    group = int(marker.read_text())
    for _ in range(200):  # its orphans are collected by init, in a moment
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail("the helper's children are alive")


async def test_a_helper_is_a_plain_name_that_only_its_owner_writes(tmp_path):
    config(tmp_path, {"credsStore": "../../bin/sh"})
    with pytest.raises(AuthError, match="no name of a credential helper"):
        await names({"PATH": "/bin"}, tmp_path, helpers=True)
    config(tmp_path, {"credsStore": "missing"})
    with pytest.raises(AuthError, match="not on the PATH"):
        await names({"PATH": str(tmp_path)}, tmp_path, helpers=True)
    env = helper(tmp_path / "bin", ANSWER % ("u", "x"), mode=0o757)
    assert stat.S_IMODE((tmp_path / "bin" / "docker-credential-test").stat().st_mode) == 0o757
    config(tmp_path, {"credsStore": "test"})
    with pytest.raises(AuthError, match="everybody may write"):
        await names(env, tmp_path, helpers=True)
