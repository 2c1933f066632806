"""The grammar of the command line, its spellings, its usage errors and its help."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from controller.cli import command
from controller.cli.command import GROUPS, VERBS, make_app
from controller.cli.flags import Given
from controller.cli.session import CommandError, NotReadyError
from tests.cli.conftest import Answer


def parsed(session, line):
    """Return the verb's function and its arguments as they are bound."""
    function, bound, injected = make_app(session).parse_args(line.split())
    assert set(injected) == {"session"}
    return function, bound.args, bound.kwargs


NOT_LEGAL = (
    '"Nop" is no legal object name: use lower case letters, digits, "-" and ".", '
    "beginning and ending with a letter or digit"
)
NO_RUNTIME = (
    "package kind Configuration does not support runtime configuration: leave out --runtime-config"
)
REF = "registry.example.com/acme/nop:v1"


@pytest.mark.parametrize(
    ("line", "verb", "args"),
    [
        ("build", "build", ()),
        ("build configuration", "build", ("configuration",)),
        ("build -f x provider", "build", ("provider",)),
        ("build provider -f x", "build", ("provider",)),
        ("xpkg build -f x", "build", ()),
        (f"push {REF}", "push", (REF,)),
        (f"push provider {REF} -f a.xpkg", "push", ("provider", REF)),
        (f"xpkg push -f a.xpkg {REF}", "push", (REF,)),
        (f"xpkg push --package-files=a.xpkg {REF}", "push", (REF,)),
        (f"install provider {REF}", "install", ("provider", REF)),
        (f"install provider {REF} nop -m -r 5", "install", ("provider", REF, "nop")),
        (f"install -m provider {REF} -r5 nop", "install", ("provider", REF, "nop")),
        (f"xpkg install function {REF} --wait=5m", "install", ("function", REF)),
        ("uninstall provider nop", "uninstall", ("provider", "nop")),
        ("uninstall provider/nop", "uninstall", ("provider/nop",)),
        ("list", "list", ()),
        ("list provider -o wide", "list", ("provider",)),
        ("trace configuration platform", "trace", ("configuration", "platform")),
        ("resource trace configuration platform", "trace", ("configuration", "platform")),
        ("resource trace configuration/platform -c x", "trace", ("configuration/platform",)),
        ("start -c /cache", "start", ()),
        ("core start --cache-dir=/cache", "start", ()),
        ("init", "init", ()),
        ("core init --provider a --provider b", "init", ()),
        ("version", "version", ()),
    ],
)
def test_every_accepted_spelling_reaches_its_verb(make_session, line, verb, args):
    function, bound, _ = parsed(make_session(), line)
    assert function is VERBS[verb][0]
    assert bound == args


def test_flags_reach_install_in_every_spelling(make_session):
    line = f"install provider {REF} -mr5 --package-pull-secrets a,b --package-pull-secrets=c -w 5m"
    flags = parsed(make_session(), line)[2]["flags"]
    assert flags.manual_activation
    assert flags.revision_history_limit == 5
    assert flags.package_pull_secrets == ["a,b", "c"]
    assert flags.wait == "5m"


def test_flags_that_are_not_given_stay_unset(make_session):
    assert "flags" not in parsed(make_session(), f"install provider {REF}")[2]


@pytest.mark.parametrize(
    ("line", "usage", "error"),
    [
        ("frob", "crossdock VERB …", 'there is no verb "frob"'),
        ("--frob", "crossdock VERB …", "unknown flag --frob"),
        (
            "xpkg frob",
            "crossdock xpkg build | push | install | extract …",
            'there is no verb "frob"',
        ),
        (
            "build frob",
            "crossdock build [configuration|function|provider] [OPTIONS]",
            'expected one of "configuration", "function", "provider" but got "frob"',
        ),
        (
            "build --frob",
            "crossdock build [configuration|function|provider] [OPTIONS]",
            "unknown flag --frob",
        ),
        (
            "build -f",
            "crossdock build [configuration|function|provider] [OPTIONS]",
            "-f: expected a value",
        ),
        (
            "push",
            "crossdock push [configuration|function|provider] REF [OPTIONS]",
            'expected "REF"',
        ),
        (
            "install provider",
            "crossdock install configuration|function|provider REF [NAME] [OPTIONS]",
            'expected "REF"',
        ),
        (
            "xpkg install",
            "crossdock xpkg install configuration|function|provider REF [NAME] [OPTIONS]",
            'expected "KIND"',
        ),
        (
            f"install provider {REF} nop more",
            "crossdock install configuration|function|provider REF [NAME] [OPTIONS]",
            "unexpected argument more",
        ),
        (
            f"install provider {REF} -r x",
            "crossdock install configuration|function|provider REF [NAME] [OPTIONS]",
            '-r: expected a number but got "x"',
        ),
        (
            f"install provider {REF} --revision-history-limit=-1",
            "crossdock install configuration|function|provider REF [NAME] [OPTIONS]",
            "--revision-history-limit: expected 0 or more but got -1",
        ),
        (
            f"install provider {REF} Nop",
            "crossdock install configuration|function|provider REF [NAME] [OPTIONS]",
            NOT_LEGAL,
        ),
        (
            f"install provider {REF} -w soon",
            "crossdock install configuration|function|provider REF [NAME] [OPTIONS]",
            '"soon" is no duration: write for example 90s, 5m or 1h30m',
        ),
        (
            f"install configuration {REF} --runtime-config x",
            "crossdock install configuration|function|provider REF [NAME] [OPTIONS]",
            NO_RUNTIME,
        ),
        (
            "uninstall provider",
            "crossdock uninstall configuration|function|provider NAME [OPTIONS]",
            'expected "NAME"',
        ),
        (
            "uninstall provider/nop nop",
            "crossdock uninstall configuration|function|provider NAME [OPTIONS]",
            '"provider/nop" names the object already: leave out "nop"',
        ),
        (
            "uninstall provider nop --cascade=orphan",
            "crossdock uninstall configuration|function|provider NAME [OPTIONS]",
            '--cascade: expected one of "background", "foreground" but got "orphan"',
        ),
        (
            "list -o yaml",
            "crossdock list [configuration|function|provider] [OPTIONS]",
            '--output: expected one of "default", "wide", "json" but got "yaml"',
        ),
        (
            "trace",
            "crossdock trace configuration|function|provider [NAME] [OPTIONS]",
            'expected "KIND"',
        ),
        ("start more", "crossdock start [OPTIONS]", "unexpected argument more"),
        (
            "init --timeout soon",
            "crossdock init [OPTIONS]",
            '"soon" is no duration: write for example 90s, 5m or 1h30m',
        ),
        ("version more", "crossdock version", "unexpected argument more"),
    ],
)
def test_wrong_usage_shows_the_usage_then_the_error_and_ends_with_2(crossdock, line, usage, error):
    answer = crossdock(*line.split())
    lines = answer.err.splitlines()
    assert answer.code == 2
    assert answer.out == ""
    assert lines[0] == f"usage: {usage}"
    assert lines[-1] == f"crossdock: error: {error}"


def test_usage_errors_of_the_plugin_are_in_its_own_name(crossdock):
    answer = crossdock("build", "--frob", program="kubectl crossdock")
    assert answer.err.startswith("usage: kubectl crossdock build ")
    assert answer.err.endswith("kubectl crossdock: error: unknown flag --frob\n")


@pytest.mark.parametrize(
    "line",
    ["", "-h", "--help", "xpkg", "resource --help", *VERBS, *[f"xpkg {v}" for v in GROUPS["xpkg"]]],
)
def test_help_is_on_standard_output_at_every_level(crossdock, line):
    words = line.split()
    helping = words if line in {"", "xpkg"} else [*words, "-h"]
    answer = crossdock(*helping)
    assert answer.code == 0
    assert answer.err == ""
    assert answer.out.startswith("Usage: crossdock ")
    assert "object at 0x" not in answer.out
    assert not re.search(r" +$", answer.out, re.MULTILINE)


def test_help_names_every_flag_of_the_manager_that_crossplane_has_too(crossdock):
    text = crossdock("core", "start", "--help").out
    for flag in (
        "--namespace, -n",
        "--service-account",
        "--ca-bundle-path",
        "--cache-dir, --xpkg-cache-dir, -c",
        "--max-concurrent-package-establishers",
        "--user-agent",
        "--debug, -d",
    ):
        assert flag in text
    for variable in ("POD_NAMESPACE", "POD_SERVICE_ACCOUNT", "CA_BUNDLE_PATH", "CACHE_DIR"):
        assert variable in text


@pytest.mark.parametrize("line", ["version", "--version"])
def test_the_version_is_one_line(crossdock, line):
    answer = crossdock(line)
    assert (answer.code, answer.out, answer.err) == (0, "crossdock 0.1.0\n", "")


def put_in_place_of_version(monkeypatch, error):
    """Let the verb ``version`` end with an error."""

    async def verb(*, session: Given) -> int:
        raise error

    monkeypatch.setitem(command.VERBS, "version", (verb, ""))


def test_an_interrupt_ends_with_130_and_no_text(crossdock, monkeypatch):
    put_in_place_of_version(monkeypatch, KeyboardInterrupt())
    assert crossdock("version") == Answer(130, "", "")


def test_not_ready_in_time_ends_with_3(crossdock, monkeypatch):
    put_in_place_of_version(monkeypatch, NotReadyError("too late"))
    assert crossdock("version") == Answer(3, "", "crossdock: error: too late\n")


def test_a_failure_ends_with_1_and_one_line(crossdock, monkeypatch):
    put_in_place_of_version(monkeypatch, CommandError("no such thing"))
    assert crossdock("version") == Answer(1, "", "crossdock: error: no such thing\n")


def test_help_and_version_load_no_client():
    code = (
        "import sys; from controller.cli.command import run; from controller.cli.session import "
        "Session; run(['--help'], Session()); run(['version'], Session()); heavy = "
        "{'kubernetes_asyncio', 'aiohttp', 'httpx', 'cryptography', 'yaml'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
