"""Certificates, authorities and credentials that change while a session is open, over real TLS."""

import asyncio
import base64
import contextlib
import gc
import json
import os
import ssl
import sys
import tempfile
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes_asyncio.config import kube_config

from controller.kube import connection, credentials, execplugin, requests, tls
from controller.kube.client import ApiError, KubeClient
from controller.kube.connection import ConfigError, find_connection
from controller.kube.execplugin import PluginCommand, PluginError, parse_output, run_plugin
from controller.kube.requests import Selection
from controller.kube.tls import TlsContexts, TlsSettings
from controller.kube.transport import Lines
from controller.model.objects import NAMESPACE
from tests.kube import kubeconfig
from tests.kube.conftest import eventually
from tests.kube.tlsserver import Authority, TlsServer, key_pem

VERSION = "client.authentication.k8s.io/v1"


@pytest.fixture
def authority() -> Authority:
    return Authority("first")


@pytest_asyncio.fixture
async def server(tmp_path: Path, authority: Authority) -> AsyncIterator[TlsServer]:
    async with TlsServer.running(tmp_path, authority=authority) as running:
        yield running


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the files before each request."""
    monkeypatch.setattr(tls, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(tls, "RETRY_SECONDS", 0.0)


class Files:
    """A kubeconfig and the files that it names."""

    def __init__(self, folder: Path, server: TlsServer, authority: Authority) -> None:
        self.folder = folder
        self.server = server
        self.ca = folder / "ca.crt"
        self.certificate = folder / "client.crt"
        self.key = folder / "client.key"
        self.ca.write_bytes(authority.pem)

    def client(self, name: str, authority: Authority) -> None:
        certificate, key = authority.issue(name)
        self.certificate.write_bytes(certificate)
        self.key.write_bytes(key)

    def write(self, **user: Any) -> Path:
        return kubeconfig.write(
            self.folder / "config",
            self.server.url,
            cluster={"certificate-authority": "ca.crt"},  # relative to the kubeconfig
            user=user,
        )


@pytest.fixture
def files(tmp_path: Path, server: TlsServer, authority: Authority) -> Files:
    return Files(tmp_path, server, authority)


def connect(config: Path) -> Any:
    return KubeClient.connect(kubeconfig=config, user_agent="t")


async def told(client: KubeClient) -> tuple[str, str]:
    """Who the server says that the client is."""
    answer = await client.get(NAMESPACE, "a")
    return answer["certificate"], answer["token"]


def watching(client: KubeClient) -> contextlib.AbstractAsyncContextManager[Lines]:
    request = requests.watch(
        Selection(NAMESPACE),
        resource_version="1",
        timeout_seconds=60,
        send_initial_events=False,
    )
    return client._transport.stream(request)


async def test_a_server_with_a_new_authority_is_trusted_at_once_and_watches_go_on(
    server: TlsServer, files: Files
):
    async with connect(files.write(token="t")) as client, watching(client) as lines:
        other = Authority("second")
        server.certify(other)
        files.ca.write_bytes(other.pem)
        assert await told(client) == ("", "Bearer t")
        async with watching(client) as later:
            await eventually(lambda: server.watching == 2)
            server.say(b"line")
            assert await anext(lines) == await anext(later) == b"line"


async def test_a_guarded_write_arrives_whole_once_the_new_authority_is_known(
    server: TlsServer, files: Files
):
    asked = []
    async with connect(files.write()) as client:
        other = Authority("second")
        server.certify(other)
        files.ca.write_bytes(other.pem)
        await client.guarded(lambda: asked.append(1)).create(NAMESPACE, {"kind": "Namespace"})
    assert server.bodies == [b'{"kind":"Namespace"}']
    assert len(asked) == 2


async def test_a_bundle_of_the_old_and_the_new_authority_serves_both(
    server: TlsServer, files: Files, authority: Authority
):
    other = Authority("second")
    files.ca.write_bytes(b"# CA: Autorit\xc3\xa9\n" + authority.pem + other.pem)
    for signer in (authority, other):
        server.certify(signer)
        async with connect(files.write()) as client:
            assert await told(client) == ("", "")


async def test_a_server_that_is_not_trusted_is_told_and_not_asked_again(
    server: TlsServer, files: Files, monkeypatch: pytest.MonkeyPatch
):
    tries = []
    request = aiohttp.ClientSession.request

    def counted(*arguments: Any, **more: Any) -> Any:
        tries.append(1)
        return request(*arguments, **more)

    monkeypatch.setattr(aiohttp.ClientSession, "request", counted)
    async with connect(files.write(token="secret")) as client:
        server.certify(Authority("second"))
        with pytest.raises(ApiError, match="check the certificate authority") as caught:
            await client.get(NAMESPACE, "a")
    assert caught.value.reason == "TLS"
    assert len(tries) == 1
    assert "secret" not in str(caught.value)
    assert server.seen == []


async def test_a_new_client_certificate_identifies_new_connections_and_watches_go_on(
    server: TlsServer, files: Files, authority: Authority, at_once: None
):
    files.client("alice", authority)
    config = files.write(**{"client-certificate": "client.crt", "client-key": "client.key"})
    async with connect(config) as client, watching(client) as lines:
        assert await told(client) == ("alice", "")
        files.client("bob", authority)
        assert await told(client) == ("bob", "")
        server.say(b"line")
        assert await anext(lines) == b"line"
    assert [who for who, _ in server.seen] == ["alice", "alice", "bob"]


async def test_certificates_that_do_not_fit_together_are_not_used(
    server: TlsServer, files: Files, authority: Authority, at_once: None
):
    files.client("alice", authority)
    config = files.write(**{"client-certificate": "client.crt", "client-key": "client.key"})
    async with connect(config) as client:
        certificate, key = authority.issue("bob")
        files.certificate.write_bytes(certificate)
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                assert await told(client) == ("alice", "")
        assert len(logs) == 1
        assert "the earlier ones stay" in logs[0]["event"]
        files.key.write_bytes(key)
        assert await told(client) == ("bob", "")
        files.ca.unlink()
        assert await told(client) == ("bob", "")


async def test_files_are_read_at_most_once_a_minute(
    server: TlsServer, files: Files, monkeypatch: pytest.MonkeyPatch
):
    readings = []
    read = tls.read_material

    def counted(settings: TlsSettings) -> Any:
        readings.append(settings)
        return read(settings)

    monkeypatch.setattr(tls, "read_material", counted)
    async with connect(files.write()) as client:
        await asyncio.gather(*(told(client) for _ in range(20)))
        assert len(readings) == 1


async def test_certificates_are_read_and_built_outside_of_the_event_loop(
    files: Files, monkeypatch: pytest.MonkeyPatch
):
    where = []
    build = tls.build_context

    def noted(material: tls.Material) -> ssl.SSLContext:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            where.append("thread")
        return build(material)

    monkeypatch.setattr(tls, "build_context", noted)
    async with connect(files.write()):
        pass
    assert where == ["thread"]


async def test_many_rotations_leave_no_context_and_no_connection(
    server: TlsServer, files: Files, authority: Authority, at_once: None
):
    contexts: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()
    before = open_files()
    async with connect(files.write()) as client:
        kept = client._transport._session
        for number in range(10):
            files.ca.write_bytes(authority.pem + b"# %d" % number)
            assert await told(client) == ("", "")
            contexts.add(await kept.contexts.current())
        assert len(contexts) == 10
        del kept
    del client
    gc.collect()
    assert len(contexts) == 0
    await eventually(lambda: open_files() <= before)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def inline(authority: Authority, name: str) -> tuple[dict[str, str], dict[str, str]]:
    certificate, key = authority.issue(name)
    parts = {
        "certificate-authority-data": authority.pem,
        "client-certificate-data": certificate,
        "client-key-data": key,
    }
    encoded = {name: base64.b64encode(data).decode() for name, data in parts.items()}
    return {"certificate-authority-data": encoded.pop("certificate-authority-data")}, encoded


async def test_certificates_in_a_kubeconfig_leave_no_file(
    server: TlsServer, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(kube_config, "_temp_files", {})
    cluster, user = inline(authority, "alice")
    config = kubeconfig.write(tmp_path / "c", server.url, cluster=cluster, user=user)
    async with connect(config) as client:
        assert await told(client) == ("alice", "")
        assert list(temporary.iterdir()) == []
    assert kube_config._temp_files == {}


async def test_an_authority_in_a_kubeconfig_that_was_written_again_is_used_at_once(
    server: TlsServer, authority: Authority, tmp_path: Path
):
    cluster, user = inline(authority, "alice")
    config = kubeconfig.write(tmp_path / "c", server.url, cluster=cluster, user=user)
    async with connect(config) as client:
        other = Authority("second")
        server.certify(other)
        cluster, _ = inline(other, "nobody")
        kubeconfig.write(config, server.url, cluster=cluster, user=user)
        assert await told(client) == ("alice", "")


async def test_a_kubeconfig_that_names_another_server_now_is_not_followed(
    server: TlsServer, files: Files
):
    config = files.write(token="first")
    async with connect(config) as client:
        kubeconfig.write(config, "https://127.0.0.1:1", user={"token": "of-another-cluster"})
        server.refused = {"Bearer first"}
        with pytest.raises(ApiError, match="log in again"):
            await client.get(NAMESPACE, "a")
    assert {token for _, token in server.seen} == {"Bearer first"}


async def test_a_kubeconfig_keeps_its_context_when_it_is_read_again(tmp_path: Path):
    path = kubeconfig.write(tmp_path / "c", "http://127.0.0.1:1", user={"token": "a"})
    found = await find_connection(kubeconfig=path)
    config = json.loads(path.read_text())
    config["users"] = [
        {"name": "u", "user": {"token": "b"}},
        {"name": "v", "user": {"token": "of-another"}},
    ]
    config["contexts"].append({"name": "other", "context": {"cluster": "c", "user": "v"}})
    config["current-context"] = "other"
    path.write_text(json.dumps(config))
    assert await found.credentials.renew("Bearer a")
    assert await found.credentials.authorization() == "Bearer b"


async def test_a_token_file_that_changes_all_the_time_serves_twenty_watches(
    server: TlsServer, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    token = tmp_path / "token"
    token.write_text("t0\n")
    readings = []
    load = connection._load_kubeconfig

    async def counted(*arguments: Any) -> Any:
        readings.append(1)
        return await load(*arguments)

    monkeypatch.setattr(connection, "_load_kubeconfig", counted)
    async with connect(files.write(tokenFile="token")) as client:
        for number in range(1, 6):
            server.refused.add(f"Bearer t{number - 1}")
            token.write_text(f"t{number}\n")
            async with contextlib.AsyncExitStack() as watches:
                await asyncio.gather(
                    *(watches.enter_async_context(watching(client)) for _ in range(20))
                )
                await eventually(lambda: server.watching == 20)
            await eventually(lambda: server.watching == 0)
    assert len(readings) == 1 + 5


class Plugin:
    """A credential plugin that notes its runs and gives what lies in a file."""

    def __init__(self, folder: Path, before: str = "") -> None:
        self.status_file = folder / "status.json"
        self.runs_file = folder / "runs"
        self.program = folder / "plugin.py"
        self.program.write_text(
            "import json, os, pathlib, subprocess, sys, time\n"
            f"runs = pathlib.Path({str(self.runs_file)!r})\n"
            "runs.open('a').write(os.environ['KUBERNETES_EXEC_INFO'] + '\\n')\n"
            f"{before}\n"
            f"status = json.loads(pathlib.Path({str(self.status_file)!r}).read_text())\n"
            f"print(json.dumps({{'apiVersion': {VERSION!r}, 'kind': 'ExecCredential',"
            " 'status': status}))\n"
        )

    def gives(self, **status: str) -> None:
        self.status_file.write_text(json.dumps(status))

    def gives_certificate(self, authority: Authority, name: str, **more: str) -> None:
        certificate, key = authority.issue(name)
        self.gives(clientCertificateData=certificate.decode(), clientKeyData=key.decode(), **more)

    @property
    def runs(self) -> list[Any]:
        """The spec that each run was told."""
        if not self.runs_file.exists():
            return []
        return [json.loads(line)["spec"] for line in self.runs_file.read_text().splitlines()]

    def user(self, **more: Any) -> dict[str, Any]:
        command = {"apiVersion": VERSION, "command": sys.executable, "args": [str(self.program)]}
        return {"exec": {**command, **more}}

    def command(self) -> PluginCommand:
        return PluginCommand(sys.executable, (str(self.program),), {}, VERSION, None)


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "PLUGIN_PAUSE", 0.0)


async def test_a_plugins_token_is_renewed_when_it_has_ended(
    server: TlsServer, files: Files, plugin: Plugin, no_pause: None
):
    plugin.gives(token="t1", expirationTimestamp="2020-01-01T00:00:00Z")
    async with connect(files.write(**plugin.user())) as client:
        plugin.gives(token="t2", expirationTimestamp="2999-01-01T00:00:00Z")
        for _ in range(3):
            assert await told(client) == ("", "Bearer t2")
    assert len(plugin.runs) == 2
    assert plugin.runs[0] == {"interactive": False}


async def test_a_plugin_is_run_once_for_twenty_refused_watches(
    server: TlsServer, files: Files, plugin: Plugin, no_pause: None
):
    plugin.gives(token="t1")
    async with connect(files.write(**plugin.user())) as client:
        server.refused = {"Bearer t1"}
        plugin.gives(token="t2")
        answers = await asyncio.gather(*(told(client) for _ in range(20)))
    assert set(answers) == {("", "Bearer t2")}
    assert len(plugin.runs) == 2


async def test_a_plugins_client_certificate_is_used_and_renewed(
    server: TlsServer,
    files: Files,
    authority: Authority,
    plugin: Plugin,
    monkeypatch: pytest.MonkeyPatch,
    no_pause: None,
):
    plugin.gives_certificate(authority, "alice", expirationTimestamp="2020-01-01T00:00:00Z")
    async with connect(files.write(**plugin.user())) as client:
        plugin.gives_certificate(authority, "bob", expirationTimestamp="2999-01-01T00:00:00Z")
        assert await told(client) == ("bob", "")
        async with watching(client) as lines:
            server.refused = {"bob"}
            monkeypatch.setattr(credentials, "PLUGIN_PAUSE", 3600.0)
            monkeypatch.setattr(client._transport._credentials, "_read_at", float("-inf"))
            plugin.gives_certificate(authority, "carol")
            answers = await asyncio.gather(*(told(client) for _ in range(20)))
            assert set(answers) == {("carol", "")}
            server.say(b"line")
            assert await anext(lines) == b"line"
    assert len(plugin.runs) == 3


async def test_a_plugin_is_told_of_the_cluster_when_it_wants_to(
    files: Files, authority: Authority, plugin: Plugin
):
    plugin.gives(token="t")
    async with connect(files.write(**plugin.user(provideClusterInfo=True))):
        pass
    (spec,) = plugin.runs
    assert spec["cluster"] == {
        "server": files.server.url,
        "certificate-authority-data": base64.b64encode(authority.pem).decode(),
    }


async def test_a_plugin_beside_the_kubeconfig_is_found_and_gets_its_environment(tmp_path: Path):
    program = tmp_path / "bin"
    program.write_text(
        f'#!/bin/sh\necho \'{{"apiVersion":"{VERSION}","kind":"ExecCredential",'
        '"status":{"token":"\'$NAMED\'"}}\'\n'
    )
    program.chmod(0o755)
    user = {
        "exec": {
            "apiVersion": VERSION,
            "command": "./bin",
            "env": [{"name": "NAMED", "value": "t"}],
        }
    }
    path = kubeconfig.write(tmp_path / "c", "http://127.0.0.1:1", user=user)
    found = await find_connection(kubeconfig=path)
    assert await found.credentials.authorization() == "Bearer t"


HANG = (
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "runs.open('a').write(json.dumps({'spec': [os.getpid(), child.pid]}) + '\\n')\n"
    "time.sleep(600)\n"
)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # it waits for whoever adopted it


async def test_a_plugin_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path):
    plugin = Plugin(tmp_path, HANG)
    with pytest.raises(PluginError, match="did not answer within 1 s"):
        await run_plugin(plugin.command(), deadline=1)
    processes = plugin.runs[-1]
    await eventually(lambda: not any(alive(each) for each in processes))


async def test_a_plugin_is_ended_with_who_waits_for_it(tmp_path: Path):
    plugin = Plugin(tmp_path, HANG)
    task = asyncio.ensure_future(run_plugin(plugin.command(), deadline=60))
    await eventually(lambda: len(plugin.runs) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: not any(alive(each) for each in plugin.runs[-1]))


async def test_a_plugin_that_hangs_later_keeps_the_earlier_token(
    server: TlsServer, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pause: None
):
    monkeypatch.setattr(connection, "PLUGIN_DEADLINE", 1.0)
    plugin = Plugin(tmp_path, f"if len(runs.read_text().splitlines()) > 1:\n    {_indent(HANG)}")
    plugin.gives(token="t1", expirationTimestamp="2020-01-01T00:00:00Z")
    async with connect(files.write(**plugin.user())) as client:
        with structlog.testing.capture_logs() as logs:
            answers = await asyncio.gather(*(told(client) for _ in range(20)))
    assert set(answers) == {("", "Bearer t1")}
    assert len(logs) == 1
    assert "did not answer within 1 s" in logs[0]["error"]


def _indent(text: str) -> str:
    return text.strip().replace("\n", "\n    ")


async def test_a_plugin_that_writes_without_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plugin = Plugin(tmp_path, "while True: sys.stdout.write('x' * 65536)")
    with pytest.raises(PluginError, match="wrote more than"):
        await run_plugin(plugin.command(), deadline=60)


async def test_a_plugins_complaint_is_told_without_secrets(tmp_path: Path):
    secret = base64.b64encode(os.urandom(60)).decode()
    plugin = Plugin(tmp_path, f"print({secret!r}); sys.exit('expired: {secret}, log in first')")
    with pytest.raises(PluginError, match=r"ended with 1: expired: .*log in first$") as caught:
        await run_plugin(plugin.command(), deadline=60)
    assert not any(part in str(caught.value) for part in secret.split("/") if len(part) >= 8)


@pytest.mark.parametrize(
    "complaint",
    [
        "no access with wJalrXUtnFEMI/K7MDENG/bPxRfi-hunter2",
        "GET https://bob:hunter2@idp.example.org failed",
        "Authorization: Bearer hunter2",
    ],
)
async def test_a_short_secret_of_a_complaint_is_not_told_either(tmp_path: Path, complaint: str):
    plugin = Plugin(tmp_path, f"sys.exit({complaint!r})")
    with pytest.raises(PluginError, match="ended with 1: ") as caught:
        await run_plugin(plugin.command(), deadline=60)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("output", "told_of"),
    [
        (b"hunter2", "no JSON"),
        (b"[]", "no ExecCredential"),
        (b'{"kind": "Secret", "token": "hunter2"}', "no ExecCredential"),
        (b'{"kind": "ExecCredential", "apiVersion": "v0"}', "not of version"),
        ({"status": {}}, "neither a token nor"),
        ({"status": None}, "neither a token nor"),
        ({"status": {"token": "hunter2", "clientKeyData": "hunter2"}}, "without its key"),
        ({"status": {"clientCertificateData": "hunter2"}}, "without its key"),
        ({"status": {"token": "hunter2", "expirationTimestamp": "soon"}}, "no time of"),
        ({"status": {"token": "hunter2", "expirationTimestamp": "2020-01-01"}}, "no time of"),
    ],
)
def test_an_output_that_is_no_credential_is_told_without_it(output: Any, told_of: str):
    if isinstance(output, dict):
        output = json.dumps({"kind": "ExecCredential", "apiVersion": VERSION, **output}).encode()
    with pytest.raises(PluginError, match=told_of) as caught:
        parse_output(output, VERSION)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "told_of"),
    [
        ({"command": "/none/such"}, "cannot be run: No such file"),
        ({"command": None}, "names no command"),
        ({"command": "x", "interactiveMode": "Always"}, "wants a terminal"),
        ({"command": "x", "env": ["a"]}, "are no lists"),
        ({"command": "x", "args": 1}, "are no lists"),
    ],
)
async def test_a_plugin_that_cannot_be_run_is_told(
    tmp_path: Path, section: dict[str, Any], told_of: str
):
    user = {"exec": {"apiVersion": VERSION, **section}}
    path = kubeconfig.write(tmp_path / "c", "http://127.0.0.1:1", user=user)
    with pytest.raises(ConfigError, match=told_of):
        await find_connection(kubeconfig=path)


def test_the_output_limit_is_a_megabyte():
    assert execplugin.OUTPUT_MAX == 2**20


async def test_a_key_with_a_password_is_told_and_nobody_is_asked(
    files: Files, authority: Authority
):
    files.client("alice", authority)
    key = ec.generate_private_key(ec.SECP256R1())
    files.key.write_bytes(key_pem(key, password=b"hunter2"))
    config = files.write(**{"client-certificate": "client.crt", "client-key": "client.key"})
    with pytest.raises(ConfigError, match="certificates cannot be used"):
        async with connect(config):
            pass


async def test_another_identity_follows_a_new_authority_but_takes_no_certificate_along(
    files: Files, authority: Authority
):
    files.client("alice", authority)
    config = files.write(**{"client-certificate": "client.crt", "client-key": "client.key"})
    found = await find_connection(kubeconfig=config)
    other = found.anonymous()
    assert found.configuration.tls().certificate_file == files.certificate
    assert other.tls() == TlsSettings(authority_file=files.ca)
    contexts = TlsContexts(other.tls, look_again=other.look_again, origin="o")
    await contexts.open()
    used = await contexts.current()
    assert not await contexts.renew(used)
    files.ca.write_bytes(Authority("second").pem)
    assert await contexts.renew(used)
    assert await contexts.renew(used)  # by somebody else in the meantime
