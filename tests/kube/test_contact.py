"""One line when the API server is away, and one when it is back."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from controller.kube.client import ApiError, KubeClient
from controller.kube.contact import Contact
from tests.kube import kubeconfig

AWAY = ApiError(status=0, reason="Unreachable", message="refused")


def test_it_is_said_once_that_the_server_is_away_and_once_that_it_is_back():
    contact = Contact()
    with capture_logs() as lines:
        contact.answered()
        for _ in range(3):
            contact.failed(AWAY)
        contact.failed(ApiError(status=503, reason="", message="not ready"))
        contact.answered()
        contact.answered()
        contact.failed(AWAY)
    assert [line["event"] for line in lines] == [
        "the API server cannot be reached",
        "the API server answers again",
        "the API server cannot be reached",
    ]


async def test_the_address_and_the_cause_are_told_and_nothing_is_logged_unasked(tmp_path: Path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        path = kubeconfig.write(tmp_path / "c", f"http://127.0.0.1:{port}", user={"token": "s"})
        with capture_logs() as lines:
            async with KubeClient.connect(kubeconfig=path, user_agent="t") as client:
                with pytest.raises(ApiError) as caught:
                    await client.request("GET", "/", deadline=0.2)
    assert str(caught.value).startswith(
        f"cannot reach the API server at 127.0.0.1:{port}: connection refused; check"
    )
    assert not lines
