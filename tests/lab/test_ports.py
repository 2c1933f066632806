"""Ports are free, outside the ephemeral range, and never given twice."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.lab import ports


@pytest.mark.parametrize(
    ("ephemeral", "expected"),
    [
        ((32_768, 60_999), range(10_000, 32_768)),
        ((10_500, 40_000), range(40_001, 65_000)),
        ((1_024, 65_535), range(10_000, 65_000)),
    ],
)
def test_candidates_lie_outside_the_ephemeral_range_where_they_can(ephemeral, expected):
    assert ports.candidate_range(ephemeral) == expected


def test_two_leases_never_hold_the_same_port(tmp_path, monkeypatch):
    # A range so small that a collision is certain without the locks.
    monkeypatch.setattr(ports, "candidate_range", lambda _: range(20_000, 20_040))
    file = tmp_path / "ports.lock"
    with (
        contextlib.closing(ports.PortLease(file)) as one,
        contextlib.closing(ports.PortLease(file)) as other,
    ):
        held = [lease.reserve() for _ in range(5) for lease in (one, other)]
    assert len(set(held)) == len(held)


def test_a_port_somebody_listens_on_is_not_given(tmp_path, monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        taken = server.getsockname()[1]
        monkeypatch.setattr(ports, "candidate_range", lambda _: range(taken, taken + 1))
        with (
            contextlib.closing(ports.PortLease(tmp_path / "ports.lock")) as lease,
            pytest.raises(ports.NoPortFreeError, match="no free port"),
        ):
            lease.reserve()


def test_a_closed_lease_gives_its_ports_back(tmp_path, monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        free = server.getsockname()[1]
    monkeypatch.setattr(ports, "candidate_range", lambda _: range(free, free + 1))
    file = tmp_path / "ports.lock"
    with contextlib.closing(ports.PortLease(file)) as first:
        assert first.reserve() == free
        with (
            contextlib.closing(ports.PortLease(file)) as second,
            pytest.raises(Exception, match="no"),
        ):
            second.reserve()
    with contextlib.closing(ports.PortLease(file)) as third:
        assert third.reserve() == free
