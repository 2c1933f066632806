"""The manager's settings: from flags, from variables, from defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.cli.command import make_app
from controller.cli.session import CommandError, UsageError
from controller.cli.start import settings_of
from controller.cli.startflags import StartFlags


@pytest.fixture
def settings(make_session, tmp_path):
    """Settings of one command line; the folder ``cache`` exists."""
    (tmp_path / "cache").mkdir()

    def read(line="--cache-dir cache", *, environ=None, terminal=False):
        session = make_session(environ=environ, terminal=terminal)
        _, bound, _ = make_app(session).parse_args(["start", *line.split()])
        return settings_of(bound.kwargs.get("flags", StartFlags()), session=session)

    return read


def test_defaults_fit_a_run_outside_a_pod(settings, tmp_path):
    found = settings()
    assert found.namespace == "crossplane-system"
    assert found.service_account == "crossplane"
    assert (found.kubeconfig, found.context, found.as_service_account) == (None, None, False)
    assert found.cache_dir == tmp_path / "cache"
    assert (found.log_format, found.log_level) == ("json", "info")
    assert found.health_address == ("127.0.0.1", 8081)
    assert found.metrics_address == ("127.0.0.1", 8080)
    assert found.ca_bundle is None
    assert found.insecure_registries == ()
    assert found.crossplane_version is None
    assert found.package_establishers == 8
    assert found.user_agent == "crossdock/0.1.0"


def test_logs_are_for_people_on_a_terminal(settings):
    assert settings(terminal=True).log_format == "console"


def test_in_a_pod_probes_come_from_outside(settings):
    found = settings(environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert found.health_address == ("0.0.0.0", 8081)
    assert found.metrics_address == ("0.0.0.0", 8080)


def test_variables_are_those_of_crossplane(settings, tmp_path):
    (tmp_path / "ca.crt").touch()
    environ = {
        "POD_NAMESPACE": "there",
        "POD_SERVICE_ACCOUNT": "somebody",
        "CACHE_DIR": "cache",
        "CA_BUNDLE_PATH": "ca.crt",
        "HEALTH_PROBE_PORT": "1",
        "METRICS_PORT": "2",
        "USER_AGENT": "test",
        "LOG_FORMAT": "console",
        "LOG_LEVEL": "error",
        "CROSSPLANE_VERSION": "v2.3.0",
    }
    found = settings("", environ=environ)
    assert found.namespace == "there"
    assert found.service_account == "somebody"
    assert found.cache_dir == tmp_path / "cache"
    assert found.ca_bundle == tmp_path / "ca.crt"
    assert found.health_address == ("127.0.0.1", 1)
    assert found.metrics_address == ("127.0.0.1", 2)
    assert found.user_agent == "test"
    assert (found.log_format, found.log_level) == ("console", "error")
    assert found.crossplane_version == "v2.3.0"


def test_a_flag_beats_its_variable(settings, tmp_path):
    environ = {
        "POD_NAMESPACE": "there",
        "XPKG_CACHE_DIR": "/nowhere",
        "LOG_LEVEL": "error",
        "HEALTH_PROBE_PORT": "1",
    }
    line = "-c cache -n here --log-level warning --health-address none --metrics-address :3"
    found = settings(line, environ=environ)
    assert found.namespace == "here"
    assert found.cache_dir == tmp_path / "cache"
    assert found.log_level == "warning"
    assert found.health_address is None
    assert found.metrics_address == ("0.0.0.0", 3)


def test_an_empty_variable_counts_as_unset(settings):
    found = settings(environ={"POD_NAMESPACE": "", "CACHE_DIR": "", "METRICS_PORT": ""})
    assert found.namespace == "crossplane-system"
    assert found.metrics_address == ("127.0.0.1", 8080)


def test_the_newer_variable_of_the_cache_folder_comes_first(settings, tmp_path):
    environ = {"XPKG_CACHE_DIR": "cache", "CACHE_DIR": "/nowhere"}
    assert settings("", environ=environ).cache_dir == tmp_path / "cache"


def test_all_flags_are_taken(settings, tmp_path):
    line = (
        "--cache=none --kubeconfig k --context c --as-service-account --log-format=json -d "
        "--insecure-registry a:1,b --insecure-registry=c --crossplane-version v2.4.0 "
        "--max-concurrent-package-establishers=4"
    )
    found = settings(line, terminal=True)
    assert found.cache_dir is None
    assert (found.kubeconfig, found.context) == (tmp_path / "k", "c")
    assert found.as_service_account
    assert (found.log_format, found.log_level) == ("json", "debug")
    assert found.insecure_registries == ("a:1", "b", "c")
    assert found.crossplane_version == "v2.4.0"
    assert found.package_establishers == 4


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--log-format xml", '--log-format: expected one of "console", "json" but got "xml"'),
        ("--log-level loud", '--log-level: expected one of "debug", "info", "warning", "error"'),
        ("--health-address 8081", '--health-address: expected HOST:PORT or "none" but got "8081"'),
        ("--metrics-address a:x", '--metrics-address: expected HOST:PORT or "none" but got "a:x"'),
        ("--package-establishers 0", "--package-establishers: expected 1 to 64 but got 0"),
        ("--package-establishers 65", "--package-establishers: expected 1 to 64 but got 65"),
        ("--sync-interval soon", '--sync-interval: "soon" is no duration'),
        ("-l --leader-election-renew-deadline=20s", "leader election: "),
        ("--cache-max-bytes much", "--cache-max-bytes: expected a size such as 20Mi"),
        ("--registry-limit tags", "--registry-limit: "),
        ("--cloud-identities moon", '--cloud-identities: expected one of "google", "aws", "azure"'),
        ("--allow-private-redirects 10.0.0.0/99", "--allow-private-redirects: "),
        ("-l --leader-election-retry-period=1ms", "leader election: the retry period"),
        ("-l --leader-election-retry-period=x", "--leader-election-retry-period: "),
        ("--sync-interval 1ms", "--sync-interval: expected 10s or more but got 0.001s"),
        ("--watch-silence 80s", "--watch-silence: expected 2m30s or more but got 1m20s"),
    ],
)
def test_a_value_that_cannot_be_is_refused(settings, line, text):
    with pytest.raises(UsageError) as caught:
        settings(f"-c cache {line}")
    assert str(caught.value).startswith(text)


def test_registries_and_cache_have_their_limits(settings, tmp_path):
    (tmp_path / "certs").mkdir()
    found = settings(
        "-c cache --registry-policy=strict --registry-certificates certs --cache-max-bytes=800Mi "
        "--cache-retention=1h --trusted-token-realm=auth.example.org "
        "--allow-private-redirects=10.0.0.0/8 --registry-limit=layers=3 "
        "--cloud-identities=aws,azure"
    )
    assert found.cloud_identities == ("aws", "azure")
    assert settings().cloud_identities == ("google", "aws", "azure")
    assert settings("-c cache --cloud-identities=none").cloud_identities == ()
    assert found.registry_policy == "strict"
    assert found.registry_certificates == tmp_path / "certs"
    assert (found.cache_max_bytes, found.cache_retention) == (800 * 2**20, 3600)
    assert found.trusted_token_realms == ("auth.example.org",)
    assert found.private_redirects == ("10.0.0.0/8",)
    assert found.registry_limits.layers == 3


def test_without_a_pod_there_is_no_election(settings):
    assert settings().election is None


def test_in_a_pod_the_pods_name_is_the_candidate(settings):
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "POD_NAME": "crossdock-5d4f-x"}
    found = settings(environ=environ).election
    assert (found.lease, found.identity) == ("crossdock-leader-election", "crossdock-5d4f-x")
    assert (found.timing.duration, found.timing.renew_deadline, found.timing.retry) == (15, 10, 2)


def test_two_candidates_of_one_machine_differ(settings):
    first, second = (settings("-c cache --leader-election").election for _ in range(2))
    assert first.identity != second.identity


@pytest.mark.parametrize(
    ("line", "variable", "elects"),
    [
        ("", "true", True),
        ("", "false", False),
        ("--leader-election=false", "true", False),
        ("--no-leader-election", "true", False),
        ("-l", "false", True),
    ],
)
def test_the_flag_of_leader_election_beats_the_variable(settings, line, variable, elects):
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "LEADER_ELECTION": variable}
    assert (settings(f"-c cache {line}", environ=environ).election is not None) is elects


def test_times_are_durations(settings):
    line = (
        "-c cache -l --leader-election-lease-duration=6s --leader-election-renew-deadline=4s "
        "--leader-election-retry-period=500ms --watch-silence=5m --sync=0"
    )
    found = settings(line)
    timing = found.election.timing
    assert (timing.duration, timing.renew_deadline, timing.retry) == (6, 4, 0.5)
    assert (found.watch_silence, found.sync_interval) == (300, 0)


def test_without_a_cache_folder_start_ends_with_one_clear_line_and_1(crossdock, tmp_path):
    answer = crossdock("start", "--cache-dir", "nowhere")
    assert answer.code == 1
    assert answer.out == ""
    assert answer.err == (
        f"crossdock: error: cache folder {tmp_path}/nowhere does not exist: create it, name "
        "another with --cache-dir, or use --cache=none\n"
    )


def test_a_file_is_no_cache_folder(settings, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match=r"cache folder .*/file is a file"):
        settings("--cache-dir file")


def test_certificates_that_cannot_be_read_are_named(settings, tmp_path):
    with pytest.raises(CommandError, match=r"cannot read the certificates in .*/x: no such file"):
        settings("-c cache --ca-bundle-path x")


def test_paths_are_relative_to_the_folder_of_the_call(settings):
    assert settings("-c cache --kubeconfig /k").kubeconfig == Path("/k")
