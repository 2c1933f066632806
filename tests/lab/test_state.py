"""The state in a lab's folder tells the truth about its supervisor, and no secrets."""

from __future__ import annotations

import fcntl
import json
import os

import pytest

from tests.lab import state
from tests.lab.processes import Identity


def test_a_saved_state_is_read_back_by_its_own_process(tmp_path):
    value = state.State(dir="d", status="ready", pids={"etcd": 7}, control=(1, "secret"))
    value.supervisor = Identity.of(os.getpid())
    state.save(tmp_path / "lab.json", value)
    assert state.load(tmp_path / "lab.json") == value
    assert (tmp_path / "lab.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("failure", "status"), [(None, "stopped"), ("etcd ended", "failed")])
def test_a_lab_whose_supervisor_is_gone_is_not_ready(tmp_path, failure, status):
    own = Identity.of(os.getpid())
    assert own is not None
    value = state.State(dir="d", status="ready", pids={"etcd": 7}, failure=failure)
    value.supervisor = Identity(own.pid, own.started - 1)
    state.save(tmp_path / "lab.json", value)
    found = state.load(tmp_path / "lab.json")
    assert found is not None
    assert (found.status, found.pids, found.running) == (status, {}, False)


def test_what_is_shown_holds_no_means_of_control():
    value = state.State(dir="d", control=(1, "secret"), supervisor=Identity.of(os.getpid()))
    assert "secret" not in json.dumps(value.public())
    assert value.public()["pid"] == os.getpid()


def test_a_folder_without_a_lab_has_no_state(tmp_path):
    assert state.load(tmp_path / "lab.json") is None


def test_users_share_a_lock_that_shuts_out_the_one_who_ends_the_lab(tmp_path):
    path = tmp_path / "users.lock"
    users = [state.try_lock(path, fcntl.LOCK_SH) for _ in range(2)]
    for user in users:
        assert user is not None
        assert state.try_lock(path, fcntl.LOCK_EX) is None
        os.close(user)
    last = state.try_lock(path, fcntl.LOCK_EX)
    assert last is not None
    assert state.try_lock(path, fcntl.LOCK_SH) is None
    os.close(last)


READY = {"type": "Ready", "status": "True"}


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"status": {"conditions": [READY]}}, True),
        ({"status": {"conditions": [READY]}, "spec": {"taints": [{"key": "k"}]}}, False),
        ({"status": {"conditions": [READY | {"status": "False"}]}}, False),
        ({}, False),
    ],
)
def test_a_node_takes_pods_when_it_is_ready_and_without_taints(node, expected):
    assert state.node_ready(json.dumps(node).encode()) is expected


def test_an_answer_that_is_no_node_is_not_ready():
    assert not state.node_ready(b"Bad Gateway")
