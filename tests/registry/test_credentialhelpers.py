import asyncio
import os
import stat
import sys
from pathlib import Path

import pytest

from controller.registry.credentialhelpers import CredentialHelpers
from controller.registry.credentials import Keychain
from controller.registry.dockerconfig import DockerConfig
from controller.registry.failures import AuthError
from tests.registry.test_dockerconfig import LOGIN, config, names, ref


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
        ('print(\'{"Username":"\\\\ud800","Secret":"x"}\')', "something else than texts"),
        ("while True: sys.stdout.write('x' * 1_000_000)", "more than 65536 bytes"),
    ],
)
async def test_t92_a_broken_helper_is_an_error_without_its_words(tmp_path, body, message):
    env = helper(tmp_path / "bin", body)
    config(tmp_path, {"credsStore": "test"})
    with pytest.raises(AuthError, match=message) as raised:
        await names(env, tmp_path, helpers=True)
    assert "secretword" not in str(raised.value)


async def test_t92_a_helper_that_hangs_is_ended_with_its_children(tmp_path):
    marker = tmp_path / "pid"
    body = f"open({str(marker)!r}, 'w').write(str(os.getpid()))\n"
    body += "if os.fork() == 0:\n    time.sleep(60)\ntime.sleep(60)"
    env = helper(tmp_path / "bin", body)
    path = config(tmp_path, {"credsStore": "test"})
    helpers = CredentialHelpers(env["PATH"], env, seconds=1.0)
    keys = Keychain((DockerConfig((path,), helpers),))
    with pytest.raises(AuthError, match="no answer in 1 s"):
        await keys.credentials_for(ref())
    await ended(int(marker.read_text()))


async def ended(group: int) -> None:
    for _ in range(200):  # its orphans are collected by init, in a moment
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(0.02)
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


async def test_t92_what_a_helper_leaves_behind_is_ended(tmp_path):
    marker = tmp_path / "pid"
    body = f"open({str(marker)!r}, 'w').write(str(os.getpid()))\n"
    body += "if os.fork() == 0:\n    os.close(1)\n    time.sleep(60)\n"
    body += ANSWER % ("user", "x")
    env = helper(tmp_path / "bin", body)
    config(tmp_path, {"credsStore": "test"})
    assert await names(env, tmp_path, helpers=True) == ["user"]
    await ended(int(marker.read_text()))


async def test_a_helper_is_asked_once_in_five_minutes_however_many_wait(tmp_path, pauses):
    count = tmp_path / "count"
    body = f"open({str(count)!r}, 'a').write('x')\n" + ANSWER % ("user", "x")
    env = helper(tmp_path / "bin", body)
    helpers = CredentialHelpers(env["PATH"], env, clock=pauses.clock)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(helpers.ask("test", "reg.io"))
    assert count.read_text() == "x"
    pauses.now += 299
    await helpers.ask("test", "reg.io")
    assert count.read_text() == "x"
    await helpers.ask("test", "other.io")
    pauses.now += 1
    await helpers.ask("test", "reg.io")
    assert count.read_text() == "xxx"


async def test_a_helper_that_cannot_be_run_is_an_error(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker-credential-test"
    program.write_bytes(b"no program")
    program.chmod(0o755)
    helpers = CredentialHelpers(str(folder), {})
    with pytest.raises(AuthError, match=r"cannot run .*Exec format error"):
        await helpers.ask("test", "reg.io")


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io"])
async def test_the_helper_of_one_registry_is_found_under_all_spellings(tmp_path, key):
    env = helper(tmp_path / "bin", ANSWER % ("user", "x"))
    config(tmp_path, {"credHelpers": {key: "test"}})
    assert await names(env, tmp_path, "ubuntu", helpers=True) == ["user"]
    assert await names(env, tmp_path, "reg.io/acme/demo:v1", helpers=True) == []


async def test_a_helper_that_is_no_text_is_an_error_that_names_the_file(tmp_path):
    path = config(tmp_path, {"credHelpers": {"reg.io": ["test"]}})
    with pytest.raises(AuthError, match=str(path)):
        await names({"PATH": "/bin"}, tmp_path, helpers=True)
