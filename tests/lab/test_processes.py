"""Processes end with their parent, and a signal reaches the process it was meant for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.processes import Identity, spawn, tail

ROOT = Path(__file__).parents[2]
_PARENT = """
import os, sys
from pathlib import Path
from tests.lab.processes import spawn
null = Path(os.devnull)
child = spawn(["sleep", "60"], stdout=null, stderr=null, environment=dict(os.environ),
              folder=Path("/"))
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def sleeper():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_child_is_killed_when_its_parent_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = Identity.of(int(parent.stdout.readline()))
        assert child is not None
        assert child.alive()
        parent.send_signal(signal.SIGKILL)
        assert child.wait(seconds=10)


def test_a_signal_reaches_the_process_it_was_meant_for(sleeper):
    identity = Identity.of(sleeper.pid)
    assert identity is not None
    assert identity.send(signal.SIGTERM)
    assert sleeper.wait(10) == -signal.SIGTERM


def test_a_later_process_with_the_same_id_gets_no_signal(sleeper):
    identity = Identity.of(sleeper.pid)
    assert identity is not None
    earlier = replace(identity, started=identity.started - 1)
    assert not earlier.alive()
    assert not earlier.send(signal.SIGKILL)
    assert identity.alive()


def test_a_process_that_ended_is_not_alive_even_before_its_parent_asks(sleeper):
    identity = Identity.of(sleeper.pid)
    assert identity is not None
    os.kill(sleeper.pid, signal.SIGKILL)
    assert identity.wait(seconds=10)
    assert Identity.of(sleeper.pid) is None
    assert not identity.send(signal.SIGKILL)


def test_a_name_with_spaces_and_parentheses_does_not_confuse_the_reading(tmp_path):
    program = tmp_path / "a) R (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        identity = Identity.of(process.pid)
        process.kill()
    assert identity is not None
    assert identity.pid == process.pid


def test_output_and_messages_go_to_their_files(tmp_path):
    out, err = tmp_path / "out", tmp_path / "err"
    process = spawn(
        ["sh", "-c", "echo said; echo warned >&2; pwd; echo $A"],
        stdout=out,
        stderr=err,
        environment={"A": "b"},
        folder=tmp_path,
    )
    assert process.wait(10) == 0
    assert out.read_text() == f"said\n{tmp_path}\nb\n"
    assert err.read_text() == "warned\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [("", ""), ("a\nb\nc\n", "b\nc"), ("x" * 50 + "\nlast", "x" * 5 + "\nlast")],
)
def test_the_tail_is_bounded_in_lines_and_bytes(tmp_path, content, expected):
    log = tmp_path / "log"
    log.write_text(content)
    assert tail(log, lines=2, limit=10) == expected


def test_a_log_that_is_not_there_has_no_tail(tmp_path):
    assert tail(tmp_path / "none") == ""
