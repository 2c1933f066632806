"""One lab serves all workers of a run, and ends with the run even when workers are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.plugin import run_folder
from tests.lab.processes import Identity

ROOT = Path(__file__).parents[2]
_TESTS = """
import json, os, signal, time
from pathlib import Path
import pytest

NOTES = Path(os.environ["NOTES"])


def note(lab):
    state = lab.state()
    text = json.dumps({"folder": str(lab.folder), "pid": state.supervisor.pid,
                       "pids": list(lab.pids.values())})
    (NOTES / f"{os.getpid()}-{time.monotonic_ns()}").write_text(text)


@pytest.mark.parametrize("number", range(4))
def test_shared(lab, namespace, number):
    note(lab)
    lab.api.expect("GET", f"/api/v1/namespaces/{namespace}")


def test_killed(lab):
    note(lab)
    if os.environ.get("KILL"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_own(own_lab, lab):
    note(lab)
    assert own_lab.folder != lab.folder
    own_lab.kill("registry")
"""


def test_workers_of_one_run_share_a_folder_and_runs_do_not():
    base = Path("/tmp/pytest-of-me/pytest-7")
    assert run_folder(base, worker=None) == base
    assert {run_folder(base / f"popen-gw{n}", worker=f"gw{n}") for n in range(3)} == {base}


@pytest.fixture
def nested(tmp_path):
    """Runs pytest on _TESTS in a process of its own; gives its code, output and notes."""

    def run(*arguments: str, **variables: str):
        notes = tmp_path / "notes"
        notes.mkdir()
        (tmp_path / "test_nested.py").write_text(_TESTS)
        kept = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
        command = [sys.executable, "-m", "pytest", "-p", "tests.lab.plugin", "--rootdir", tmp_path]
        command += ["-c", os.devnull, f"--basetemp={tmp_path / 'base'}", *arguments, tmp_path]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=kept | {"NOTES": str(notes), "PYTHONPATH": str(ROOT)} | variables,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        return done, [json.loads(path.read_text()) for path in notes.iterdir()]

    return run


def gone(pids):
    deadline = time.monotonic() + 20
    while left := [pid for pid in pids if Identity.of(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.lab
def test_workers_share_one_lab_that_ends_with_the_last_of_them(nested, tmp_path):
    done, notes = nested("-n2")
    assert done.returncode == 0, done.stdout
    assert {each["folder"] for each in notes} == {str(tmp_path / "base" / "lab")}
    assert len({each["pid"] for each in notes}) == 1
    assert not [pid for each in notes for pid in each["pids"] if Identity.of(pid)]


@pytest.mark.lab
def test_the_lab_ends_when_a_worker_is_killed(nested):
    done, notes = nested("-n2", KILL="1")
    assert "1 failed, 5 passed" in done.stdout, done.stdout
    gone({pid for each in notes for pid in [each["pid"], *each["pids"]]})


@pytest.mark.lab
def test_without_xdist_the_lab_ends_with_the_run(nested):
    done, notes = nested()
    assert done.returncode == 0, done.stdout
    assert not [pid for each in notes for pid in each["pids"] if Identity.of(pid)]


@pytest.mark.lab
def test_a_lab_that_runs_already_is_used_and_left_running(nested, tmp_path):
    lab = [sys.executable, "-m", "tests.lab"]
    folder = tmp_path / "mine"
    subprocess.run([*lab, "up", "--dir", folder, "--detach"], cwd=ROOT, check=True, timeout=100)
    try:
        done, notes = nested("-k", "shared", CROSSDOCK_LAB=str(folder))
        assert done.returncode == 0, done.stdout
        assert {each["folder"] for each in notes} == {str(folder)}
        assert all(Identity.of(pid) for each in notes for pid in each["pids"])
    finally:
        subprocess.run([*lab, "down", "--dir", folder], cwd=ROOT, check=True, timeout=100)


def test_missing_binaries_are_named_with_the_command_that_provides_them(nested, tmp_path):
    variables = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done, _ = nested("-k", "shared", **variables, CROSSDOCK_LAB_BIN="", KUBEBUILDER_ASSETS="")
    assert done.returncode == 1
    assert "run `python -m tests.lab build` first" in done.stdout
