import base64
import json
from pathlib import Path

import pytest

from controller.registry.dockerconfig import docker_keychain
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
