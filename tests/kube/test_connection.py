import json
import os
import sys
from pathlib import Path

import pytest
import structlog

from controller.kube import credentials, session
from controller.kube.connection import ConfigError, find_connection, open_session
from tests.kube import kubeconfig


async def failure(**wanted: object) -> str:
    with pytest.raises(ConfigError) as caught:
        await find_connection(**wanted)  # type: ignore[arg-type]  # tables of arguments
    text = str(caught.value)
    assert "\n" not in text
    return text


async def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path):
    text = await failure(kubeconfig=tmp_path / "none")
    assert text == f"kubeconfig {tmp_path}/none does not exist: give another with --kubeconfig"


async def test_without_any_kubeconfig_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "give a kubeconfig with --kubeconfig" in await failure(pod_files=tmp_path / "no-pod")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "no valid kubeconfig"),
        ("", "no valid kubeconfig"),
        ("[1, 2]", "no valid kubeconfig"),
        ("just text", "no valid kubeconfig"),
        ("a: b: c", "no valid kubeconfig"),
        ("clusters: []\ncontexts: []\nusers: []", "no current context is set"),
        ("current-context: ''\nclusters: []\ncontexts: []\nusers: []", "context"),
    ],
)
async def test_a_malformed_kubeconfig_is_told_in_one_line(tmp_path: Path, content: str, told: str):
    path = tmp_path / "config"
    path.write_text(content)
    text = await failure(kubeconfig=path)
    assert told in text
    assert str(path) in text


async def test_a_context_that_is_not_there_is_named(tmp_path: Path):
    path = kubeconfig.write(tmp_path / "config", "http://127.0.0.1:1")
    text = await failure(kubeconfig=path, context="other")
    assert text.endswith("there is no context named other; choose another with --context")


@pytest.mark.parametrize("server", ["", "127.0.0.1:6443", "ftp://x", "https://"])
async def test_a_server_that_is_no_url_is_told(tmp_path: Path, server: str):
    path = kubeconfig.write(tmp_path / "config", server)
    assert "no http or https URL" in await failure(kubeconfig=path)


async def test_no_secret_of_a_kubeconfig_is_told(tmp_path: Path):
    user = {"auth-provider": {"name": "oidc", "config": {"refresh-token": "hunter2"}}}
    path = kubeconfig.write(tmp_path / "config", "http://127.0.0.1:1", user=user)
    assert "hunter2" not in await failure(kubeconfig=path)


async def test_namespace_and_server_come_from_the_context(tmp_path: Path):
    path = kubeconfig.write(tmp_path / "config", "http://127.0.0.1:1/", namespace="ns")
    found = await find_connection(kubeconfig=path)
    assert (found.server, found.namespace) == ("http://127.0.0.1:1", "ns")
    assert await found.credentials.authorization() is None


async def test_the_variable_may_name_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = kubeconfig.write(tmp_path / "b", "http://127.0.0.1:1")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'a'}{os.pathsep}{path}")
    assert (await find_connection()).server == "http://127.0.0.1:1"


def pod(folder: Path, token: str = "t1") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(token + "\n")
    (folder / "ca.crt").write_text("certificate")
    (folder / "namespace").write_text("crossplane-system")
    return folder


async def test_a_pod_uses_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    found = await find_connection(pod_files=pod(tmp_path / "pod"))
    assert (found.server, found.namespace) == ("https://10.96.0.1:443", "crossplane-system")
    assert await found.credentials.authorization() == "Bearer t1"  # without the line's end


async def test_a_kubeconfig_that_is_asked_for_wins_over_the_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    path = kubeconfig.write(tmp_path / "config", "http://127.0.0.1:1")
    files = pod(tmp_path / "pod")
    assert (await find_connection(kubeconfig=path, pod_files=files)).server == "http://127.0.0.1:1"
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert (await find_connection(pod_files=files)).server == "http://127.0.0.1:1"


async def test_a_pods_token_is_read_again_after_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    files = pod(tmp_path / "pod")
    found = (await find_connection(pod_files=files)).credentials
    pod(tmp_path / "pod", "t2")
    assert await found.authorization() == "Bearer t1"
    assert await found.renew("Bearer t1")
    assert await found.authorization() == "Bearer t2"
    assert not await found.renew("Bearer t2")


async def test_a_pods_token_is_read_again_when_its_time_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(credentials, "REREAD_SECONDS", 0.0)
    files = pod(tmp_path / "pod")
    found = (await find_connection(pod_files=files)).credentials
    pod(tmp_path / "pod", "t2")
    assert await found.authorization() == "Bearer t2"
    (files / "token").unlink()
    with structlog.testing.capture_logs() as logs:
        assert await found.authorization() == "Bearer t2"
    assert "token" in logs[0]["error"]


def plugin(folder: Path, script: str) -> dict[str, object]:
    program = folder / "plugin.py"
    program.write_text(script)
    version = "client.authentication.k8s.io/v1"
    return {
        "exec": {"apiVersion": version, "command": sys.executable, "args": [str(program)]},
    }


async def test_a_credential_plugin_that_fails_is_told(tmp_path: Path):
    user = plugin(tmp_path, "import sys; sys.exit('log in first')")
    path = kubeconfig.write(tmp_path / "c", "http://127.0.0.1:1", user=user)
    assert "log in first" in await failure(kubeconfig=path)


async def test_unusable_certificates_are_told(tmp_path: Path):
    bad = tmp_path / "ca.crt"
    bad.write_text("no certificate")
    cluster = {"certificate-authority": str(bad)}
    path = kubeconfig.write(tmp_path / "c", "https://127.0.0.1:1", cluster=cluster)
    found = await find_connection(kubeconfig=path)
    with pytest.raises(ConfigError, match="certificates cannot be used"):
        async with open_session(found.configuration, origin=found.origin, user_agent="t"):
            pass


async def test_a_cluster_without_a_user_is_spoken_to_as_nobody(tmp_path: Path):
    path = kubeconfig.write(tmp_path / "c", "https://127.0.0.1:1")
    config = json.loads(path.read_text())
    config["users"] = []
    path.write_text(json.dumps(config))
    found = await find_connection(kubeconfig=path)
    assert await found.credentials.authorization() is None


async def test_certificates_lie_beside_the_file_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    cluster = {"certificate-authority": "ca.crt"}
    one = kubeconfig.write(tmp_path / "a" / "c", "https://127.0.0.1:1", cluster=cluster)
    user = {"client-certificate": "u.crt", "client-key": "/u.key"}
    other = kubeconfig.write(tmp_path / "b" / "c", "https://127.0.0.1:2", user=user)
    config = json.loads(one.read_text())
    config["users"] = []
    one.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", f"{one}{os.pathsep}{other}")
    settings = (await find_connection()).configuration.tls()
    assert settings.authority_file == tmp_path / "a" / "ca.crt"
    assert settings.certificate_file == tmp_path / "b" / "u.crt"
    assert settings.key_file == Path("/u.key")


async def test_data_that_is_no_base64_is_told_without_it(tmp_path: Path):
    cluster = {"certificate-authority-data": "hunter2"}
    path = kubeconfig.write(tmp_path / "c", "https://127.0.0.1:1", cluster=cluster)
    text = await failure(kubeconfig=path)
    assert "its certificate-authority-data is not base64" in text
    assert "hunter2" not in text


async def test_a_token_file_wins_over_a_token(tmp_path: Path):
    (tmp_path / "token").write_text("from-file\n")
    user = {"token": "of-old", "tokenFile": "token"}
    path = kubeconfig.write(tmp_path / "c", "http://127.0.0.1:1", user=user)
    found = await find_connection(kubeconfig=path)
    assert await found.credentials.authorization() == "Bearer from-file"


@pytest.mark.parametrize(
    ("server", "environment", "proxy"),
    [
        ("https://10.0.0.1:6443", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://10.0.0.1:6443", {"HTTP_PROXY": "http://p:3128"}, None),
        (
            "https://10.0.0.1:6443",
            {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "10.0.0.1"},
            None,
        ),
        ("https://127.0.0.1:6443", {"HTTPS_PROXY": "http://p:3128"}, None),
        ("https://[::1]:6443", {"HTTPS_PROXY": "http://p:3128"}, None),
        ("https://localhost:6443", {"HTTPS_PROXY": "http://p:3128"}, None),
    ],
)
async def test_the_environments_proxy_is_used_but_never_for_loopback(
    monkeypatch: pytest.MonkeyPatch, server: str, environment: dict[str, str], proxy: str | None
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert session._proxy(None, server, "o").get("proxy") == proxy


def test_a_proxys_password_is_no_part_of_its_address():
    options = session._proxy("http://user:p%40ss@proxy:3128", "https://10.0.0.1", "o")
    assert options["proxy"] == "http://proxy:3128"
    assert options["proxy_headers"] == {"Proxy-Authorization": "Basic dXNlcjpwQHNz"}


def test_a_proxy_of_another_kind_is_told():
    with pytest.raises(ConfigError, match="no http or https URL"):
        session._proxy("socks5://user:secret@p:1", "https://10.0.0.1", "o")


def merged(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str, **more: str) -> None:
    """Let the variable name kubeconfigs, one a server, each with a context of its own."""
    for name in names:
        file = kubeconfig.write(folder / name, f"http://{name}:1")
        text = file.read_text().replace('"main"', f'"{name}"').replace('"c"', f'"c-{name}"')
        text = text.replace('"u"', f'"u-{name}"')
        file.write_text(text)
        if name in more:
            file.write_text(text.replace(f'"current-context": "{name}"', more[name]))
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(str(folder / name) for name in names))


async def test_of_many_files_the_first_that_names_a_current_context_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    merged(tmp_path, monkeypatch, "one", "two")
    assert (await find_connection()).server == "http://one:1"
    merged(tmp_path, monkeypatch, "one", "two", one='"current-context": ""')
    assert (await find_connection()).server == "http://two:1"


async def test_an_empty_file_among_others_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    merged(tmp_path, monkeypatch, "one")
    (tmp_path / "empty").touch()
    for order in ("empty", "one"), ("one", "empty"):
        monkeypatch.setenv("KUBECONFIG", os.pathsep.join(str(tmp_path / name) for name in order))
        assert (await find_connection()).server == "http://one:1"


@pytest.mark.parametrize(
    "user",
    [
        {"token": "t", "as": "somebody"},
        {"token": "t", "as-groups": ["g"]},
        {"auth-provider": {"name": "azure"}},
    ],
)
async def test_who_would_be_taken_for_another_is_refused(tmp_path: Path, user: dict[str, object]):
    path = kubeconfig.write(tmp_path / "c", "http://127.0.0.1:1", user=user)
    assert "not supported" in await failure(kubeconfig=path)


async def test_a_kubeconfigs_content_in_the_variable_is_not_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KUBECONFIG", "hunter2" * 1000)
    assert "hunter2" not in await failure()


@pytest.mark.parametrize("server", ["http://a:hunter2@x", "http://x:hunter2", "http://[::1"])
async def test_a_server_with_a_user_or_an_odd_port_is_told_without_it(tmp_path: Path, server: str):
    text = await failure(kubeconfig=kubeconfig.write(tmp_path / "c", server))
    assert "no http or https URL" in text
    assert "hunter2" not in text


@pytest.mark.parametrize("entry", ["10.0.0.0/8", "fd00::/8", "fd00::1"])
def test_a_server_in_a_range_of_no_proxy_is_reached_directly(
    monkeypatch: pytest.MonkeyPatch, entry: str
):
    monkeypatch.setenv("HTTPS_PROXY", "http://p:3128")
    monkeypatch.setenv("NO_PROXY", f".svc, {entry}")
    server = "https://[fd00::1]:443" if ":" in entry else "https://10.96.0.1:443"
    assert session._proxy(None, server, "o") == {}
    assert session._proxy(None, "https://172.16.0.1", "o")["proxy"] == "http://p:3128"


@pytest.mark.parametrize("proxy", ["http://u:hunter2/x@p:1", "http://u:hunter2@p:99999"])
def test_a_proxy_that_is_no_address_is_told_without_its_password(proxy: str):
    with pytest.raises(ConfigError) as caught:
        session._proxy(proxy, "https://10.0.0.1", "o")
    assert "hunter2" not in str(caught.value)
