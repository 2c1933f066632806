"""Faults: what happens to the manager's surroundings, and how each is made and undone."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.lab.errors import LabError
from tests.soak.stand import Stand

API_SERVER = "kube-apiserver"
READY_SECONDS = 120.0  # for the API server to be back
POLL = 0.05
TORN_AFTER = 700  # bytes: in the middle of the next event

Wait = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault.

    Attributes:
        seconds: how long it lasts, at least and at most.
        make: does it, waits, undoes it; returns when all is as before (monotonic seconds).
    """

    name: str
    seconds: tuple[float, float]
    make: Callable[[Stand, float, Wait], float]


def api_server_killed(stand: Stand, seconds: float, wait: Wait) -> float:
    """Kill the API server and start it again; what needs it is started anew as well."""
    stand.lab.kill(API_SERVER)
    try:
        wait(seconds)
    finally:
        back = _start_api_server(stand)
    return back


def api_server_stopped(stand: Stand, seconds: float, wait: Wait) -> float:
    """Freeze the API server: connections stay open and nothing answers."""
    stand.lab.pause(API_SERVER)
    try:
        wait(seconds)
    finally:
        stand.lab.resume(API_SERVER)
    return time.monotonic()


def registry_killed(stand: Stand, seconds: float, wait: Wait) -> float:
    """Kill the registry and start it again."""
    stand.lab.kill("registry")
    try:
        wait(seconds)
    finally:
        stand.lab.start("registry")
    return time.monotonic()


def connections_cut(stand: Stand, seconds: float, wait: Wait) -> float:
    """Reset every connection of the manager to the API server, and refuse new ones for a while."""
    stand.wire.cut()
    try:
        wait(seconds)
    finally:
        stand.wire.mend()
    return time.monotonic()


def connections_torn(stand: Stand, seconds: float, wait: Wait) -> float:
    """Reset each connection in the middle of what the API server sends next."""
    stand.wire.tear(TORN_AFTER)
    try:
        wait(seconds)
    finally:
        stand.wire.mend()
    return time.monotonic()


def connections_swallowed(stand: Stand, seconds: float, wait: Wait) -> float:
    """Acknowledge what the manager sends and never answer; these connections stay dead."""
    stand.wire.swallow()
    try:
        wait(seconds)
    finally:
        stand.wire.mend()
    return time.monotonic()


def packets_dropped(stand: Stand, seconds: float, wait: Wait) -> float:
    """Drop the packets of all connections; these connections stay dead, and nobody is told."""
    stand.wire.drop()
    try:
        wait(seconds)
    finally:
        stand.wire.mend()
    return time.monotonic()


def connections_silent(stand: Stand, seconds: float, wait: Wait) -> float:
    """Pass nothing on between manager and API server for a while; nobody is told."""
    stand.wire.silence()
    try:
        wait(seconds)
    finally:
        stand.wire.mend()
    return time.monotonic()


def history_compacted(stand: Stand, seconds: float, wait: Wait) -> float:
    """Cut the connections, and let the API server forget what happens meanwhile: watches get 410.

    The API server keeps recent events in memory as well, so it is started anew after etcd has
    compacted its history.
    """
    stand.wire.cut()
    try:
        wait(seconds)
        stand.lab.kill(API_SERVER)
        _compact(stand.etcd)
    finally:
        _start_api_server(stand)
        stand.wire.mend()
    return time.monotonic()


FAULTS = (
    Fault("API server killed", (1, 10), api_server_killed),
    Fault("API server stopped", (5, 40), api_server_stopped),
    Fault("registry killed", (2, 20), registry_killed),
    Fault("connections cut", (0, 10), connections_cut),
    Fault("connections torn", (2, 5), connections_torn),
    Fault("connections silent", (5, 40), connections_silent),
    Fault("connections swallowed", (1, 5), connections_swallowed),
    Fault("packets dropped", (1, 5), packets_dropped),
    Fault("history compacted", (5, 10), history_compacted),
)


def drawn(chance: random.Random) -> Iterator[tuple[Fault, float]]:
    """Yield faults and their lengths for ever: each kind once in a random order, then again."""
    while True:
        for fault in chance.sample(FAULTS, len(FAULTS)):
            yield fault, chance.uniform(*fault.seconds)


def _start_api_server(stand: Stand) -> float:
    """Start the API server; return when it was ready, which is before what needs it is."""
    failures: list[LabError] = []

    def start() -> None:
        try:
            stand.lab.start(API_SERVER)
        except LabError as error:
            failures.append(error)

    starter = threading.Thread(target=start, name="API server")
    starter.start()
    back = _ready(stand)
    starter.join(READY_SECONDS)
    if failures:
        raise failures[0]
    return back


def _ready(stand: Stand) -> float:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if stand.platform.api.request("GET", "/readyz")[0] == 200:
                break
        except LabError:
            pass
        time.sleep(POLL)
    return time.monotonic()


def _compact(etcd: tuple[str, int]) -> None:
    """Let etcd forget everything but the present state."""
    revision = _ask(etcd, "/v3/maintenance/status", {})["header"]["revision"]
    _ask(etcd, "/v3/kv/compaction", {"revision": revision})


def _ask(etcd: tuple[str, int], path: str, body: dict[str, str]) -> dict[str, dict[str, str]]:
    connection = http.client.HTTPConnection(*etcd, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise LabError(f"etcd: {path}: {answer.status} {content[:200]!r}")
        return json.loads(content)
    finally:
        connection.close()
