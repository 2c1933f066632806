"""Health endpoints over real sockets on loopback."""

import json
import socket

import aiohttp
import pytest

from controller.telemetry import HealthServer, ListenError, Metrics
from controller.telemetry.health import run_checks

ANY = ("127.0.0.1", 0)


async def get(port: int, path: str, **headers: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}", headers=headers) as answer,
    ):
        return answer.status, await answer.text()


def server(
    health: tuple[str, int] | None = ANY, metrics: tuple[str, int] | None = ANY
) -> HealthServer:
    return HealthServer(health=health, metrics=metrics, render=lambda: b"up 1\n")


async def test_a_process_that_is_well_answers_200():
    async with server() as running:
        for path in ("healthz", "readyz"):
            status, text = await get(running.health_port, f"/{path}")
            assert (status, text) == (200, f"[+]ping ok\n{path} check passed\n")


async def test_a_failing_check_is_named_with_its_reason():
    running = server()
    running.add_readiness("informers", lambda: "Lock: no event for 300 s")
    running.add_readiness("lease", lambda: None)
    async with running:
        status, text = await get(running.health_port, "/readyz")
        assert status == 503
        assert text.splitlines() == [
            "[+]ping ok",
            "[-]informers failed: Lock: no event for 300 s",
            "[+]lease ok",
            "readyz check failed",
        ]
        assert (await get(running.health_port, "/healthz"))[0] == 200


async def test_liveness_and_readiness_are_apart_and_asked_at_each_request():
    sick: list[str] = []
    running = server()
    async with running:
        running.add_liveness("loop", lambda: sick[0] if sick else None)
        assert (await get(running.health_port, "/healthz"))[0] == 200
        sick.append("stuck")
        assert (await get(running.health_port, "/healthz"))[0] == 503
        assert (await get(running.health_port, "/readyz"))[0] == 200


async def test_the_answer_is_json_for_those_who_ask_for_it():
    running = server()
    running.add_liveness("loop", lambda: "stuck")
    async with running:
        status, text = await get(running.health_port, "/healthz", Accept="application/json")
        assert (status, json.loads(text)) == (503, {"ok": False, "failing": {"loop": "stuck"}})


def test_a_check_that_raises_has_failed():
    def broken() -> str | None:
        raise KeyError("store")

    found = run_checks({"broken": broken, "fine": lambda: None})
    assert found == {"broken": "the check itself failed: KeyError('store')", "fine": None}


async def test_metrics_are_served_on_their_own_address():
    metrics = Metrics()
    metrics.pass_raised("image")
    async with HealthServer(health=ANY, metrics=ANY, render=metrics.render) as running:
        status, text = await get(running.metrics_port, "/metrics")
        assert status == 200
        assert 'controller_runtime_reconcile_panics_total{controller="image"} 1.0' in text
        assert (await get(running.health_port, "/metrics"))[0] == 404
        assert (await get(running.metrics_port, "/healthz"))[0] == 404


async def test_one_address_may_serve_both():
    with socket.socket() as probe:
        probe.bind(ANY)
        address = probe.getsockname()
    async with server(address, address) as running:
        assert running.health_port == running.metrics_port == address[1]
        assert (await get(address[1], "/readyz"))[0] == 200
        assert (await get(address[1], "/metrics"))[1] == "up 1\n"


async def test_an_address_that_is_not_wanted_is_not_listened_on():
    async with server(None, None) as running:
        assert (running.health_port, running.metrics_port) == (0, 0)


async def test_an_address_that_is_taken_is_one_clear_error_and_leaves_nothing_open():
    with socket.socket() as taken, socket.socket() as probe:
        taken.bind(ANY)
        taken.listen()
        probe.bind(ANY)
        free = probe.getsockname()
        probe.close()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError) as caught:
            await server(free, ("127.0.0.1", port)).__aenter__()
        assert str(caught.value) == (
            f"cannot listen on 127.0.0.1:{port} for metrics: address already in use;"
            " free it or choose another with --metrics-address"
        )
        async with server(free, None):  # the first listener was closed again
            pass


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "x" * 70, "::ffff:zz"])
async def test_an_address_that_cannot_be_is_one_clear_error(host):
    with pytest.raises(
        ListenError, match=r"^cannot listen on .* for health: (?!unknown).*-address$"
    ):
        await server((host, 8081), None).__aenter__()


async def test_the_ports_are_free_again_after_the_end():
    async with server() as running:
        port = running.health_port
    async with server(("127.0.0.1", port), None) as running:
        assert running.health_port == port
