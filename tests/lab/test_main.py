"""The lab's command: up, down and status, and nothing that outlives a lab."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.lab import Lab, end
from tests.lab.processes import Identity

pytestmark = pytest.mark.lab
ROOT = Path(__file__).parents[2]


def command(*arguments):
    return [sys.executable, "-m", "tests.lab", *map(str, arguments)]


def run(*arguments, code=0):
    done = subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def identities(told):
    pids = [*told["pids"].values(), told["pid"]]
    found = [Identity.of(pid) for pid in pids]
    assert None not in found
    return [each for each in found if each is not None]


def gone(processes, *, seconds=20.0):
    deadline = time.monotonic() + seconds
    while any(each.alive() for each in processes):
        assert time.monotonic() < deadline, [each for each in processes if each.alive()]
        time.sleep(0.05)


@pytest.fixture
def ended():
    """Folders whose labs are ended after the test, whatever happened."""
    folders: list[Path] = []
    yield folders
    for folder in folders:
        run("down", "--dir", folder)


def test_labs_side_by_side_never_collide_and_each_ends_alone(tmp_path, ended):
    ended += [tmp_path / "one", tmp_path / "two"]
    starts = [
        subprocess.Popen(
            command("up", "--dir", folder, "--detach"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in ended
    ]
    outputs = [start.communicate(timeout=200) for start in starts]
    assert [start.returncode for start in starts] == [0, 0], outputs
    one, two = (json.loads(output) for output, _ in outputs)
    assert one["server"] != two["server"]
    assert one["registry"] != two["registry"]
    first, second = identities(one), identities(two)
    run("down", "--dir", ended[0])
    gone(first, seconds=0)
    assert all(each.alive() for each in second)
    assert json.loads(run("status", "--dir", ended[1]).stdout)["status"] == "ready"


def test_detach_returns_when_ready_and_down_ends_everything(tmp_path, ended):
    folder = tmp_path / "lab"
    ended.append(folder)
    told = json.loads(run("up", "--dir", folder, "--detach").stdout)
    assert told["status"] == "ready"
    assert told["dir"] == str(folder)
    assert Path(told["kubeconfig"]).is_file()
    assert set(told["pids"]) >= {"etcd", "kube-apiserver", "registry", "kwok"}
    assert json.loads(run("status", "--dir", folder).stdout) == told
    again = run("up", "--dir", folder, "--detach", code=1)
    assert f"a lab runs in {folder} already" in again.stderr
    processes = identities(told)
    run("down", "--dir", folder)
    gone(processes, seconds=0)
    assert json.loads(run("status", "--dir", folder, code=1).stdout)["status"] == "stopped"
    run("down", "--dir", folder)


def test_a_folder_that_never_held_a_lab_is_told_so(tmp_path):
    assert "never held a lab" in run("status", "--dir", tmp_path, code=1).stderr
    assert "never held a lab" in run("down", "--dir", tmp_path).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_it_runs_until_a_signal(tmp_path, number):
    with subprocess.Popen(
        command("up", "--dir", tmp_path / "lab"), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        told = read_json(process)
        processes = identities(told)
        process.send_signal(number)
        assert process.wait(30) == 0
    gone(processes, seconds=0)


def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path):
    with subprocess.Popen(
        command("up", "--dir", tmp_path / "lab"), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        processes = identities(read_json(process))
        process.kill()
        process.wait(30)
    gone(processes)
    told = json.loads(run("status", "--dir", tmp_path / "lab", code=1).stdout)
    assert (told["status"], told["pids"], told["pid"]) == ("stopped", {}, None)


def test_a_lab_whose_folder_is_removed_ends(tmp_path):
    folder = tmp_path / "lab"
    told = json.loads(run("up", "--dir", folder, "--detach").stdout)
    processes = identities(told)
    folder.rename(tmp_path / "elsewhere")
    gone(processes)


def test_a_supervisor_that_does_not_answer_is_killed_with_all_it_started(tmp_path, ended):
    folder = tmp_path / "lab"
    ended.append(folder)
    told = json.loads(run("up", "--dir", folder, "--detach").stdout)
    processes = identities(told)
    os.kill(told["pid"], signal.SIGSTOP)
    end(folder, seconds=0.5)
    gone(processes)


_TAKEN = """
import socket, sys
from tests.lab import __main__, supervisor

server = socket.create_server(("127.0.0.1", 0))
ports = [server.getsockname()[1]]
reserve = supervisor.PortLease.reserve
supervisor.PortLease.reserve = lambda lease: ports.pop() if ports else reserve(lease)
sys.exit(__main__.main(["up", "--dir", sys.argv[1]]))
"""


def test_a_port_that_is_taken_meanwhile_is_replaced(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", _TAKEN, str(tmp_path / "lab")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert read_json(process)["status"] == "ready"
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert "etcd: its port is taken, trying others" in said


def test_a_component_that_cannot_start_is_reported_with_its_log(tmp_path):
    done = run("up", "--dir", tmp_path / "lab", "--apiserver-arg=--no-such-flag", code=1)
    assert "kube-apiserver ended with exit code 1" in done.stderr
    assert "unknown flag: --no-such-flag" in done.stderr
    told = json.loads(run("status", "--dir", tmp_path / "lab", code=1).stdout)
    assert told["status"] == "failed"
    assert "--no-such-flag" in told["failure"]


_USER = """
import os, signal, sys
from pathlib import Path
from tests.lab.lab import Lab, end
lab = Lab.launch(Path(sys.argv[1]), audit=False)
print(lab.state().supervisor.pid, flush=True)
sys.stdin.readline()
if sys.argv[2] == "close":
    lab.close()
else:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("last", ["close", "kill"])
def test_a_lab_of_several_users_ends_with_the_last_however_that_one_ends(tmp_path, last):
    users = [
        subprocess.Popen(
            [sys.executable, "-c", _USER, str(tmp_path / "lab"), how],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for how in ("kill", last)
    ]
    supervisors = [int(line(user)) for user in users]
    assert supervisors[0] == supervisors[1]
    supervisor = Identity.of(supervisors[0])
    assert supervisor is not None
    with Lab.attach(tmp_path / "lab") as lab:
        components = [Identity.of(pid) for pid in lab.pids.values()]
        finish(users[0])
        assert supervisor.alive()
    finish(users[1])
    gone([supervisor, *(each for each in components if each)])
    assert not (tmp_path / "lab" / "etcd").exists()
    assert (tmp_path / "lab" / "logs" / "kube-apiserver.log").exists()


def line(process):
    return process.stdout.readline()


def finish(process):
    process.communicate("end\n", timeout=60)


def test_using_a_lab_in_the_foreground_does_not_end_it(tmp_path, ended):
    folder = tmp_path / "lab"
    ended.append(folder)
    told = json.loads(run("up", "--dir", folder, "--detach").stdout)
    with Lab.attach(folder) as lab:
        assert lab.registry == told["registry"]
    with Lab.launch(folder) as lab:
        assert lab.registry == told["registry"]
    assert all(each.alive() for each in identities(told))


def read_json(process):
    """Read the one JSON object that a lab prints when it is ready."""
    text = ""
    while True:
        text += process.stdout.readline()
        try:
            return json.loads(text)
        except ValueError:
            assert process.poll() is None, os.fsdecode(text)
