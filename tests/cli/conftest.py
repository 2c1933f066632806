"""Sessions whose streams, folder, environment and clients are the test's own."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controller.cli.command import run
from controller.cli.session import Session, connect_cluster
from tests.lab.lab import Lab

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


class Stream(io.StringIO):
    """A text stream that says of itself whether it is a terminal."""

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@dataclass(frozen=True)
class Answer:
    """What a person sees of one call."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


def unreachable(*_: object) -> Any:
    raise AssertionError("nothing may be asked of a cluster or registry here")


@pytest.fixture
def make_session(tmp_path: Path) -> Callable[..., Session]:
    """Sessions in an empty folder and environment; clients are unreachable unless given."""

    def make(
        *, terminal: bool = False, environ: Mapping[str, str] | None = None, **more
    ) -> Session:
        defaults: dict[str, Any] = {
            "folder": tmp_path,
            "environ": environ or {},
            "stdout": Stream(terminal=terminal),
            "stderr": Stream(terminal=terminal),
            "now": lambda: NOW,
            "cluster": unreachable,
            "registries": unreachable,
        }
        return Session(**{**defaults, **more})

    return make


@pytest.fixture
def crossdock(make_session) -> Command:
    """Run one command line in a session of its own and return what a person sees."""

    def call(*argv: str, **more) -> Answer:
        session = make_session(**more)
        code = run(argv, session)
        return Answer(code, session.stdout.getvalue(), session.stderr.getvalue())

    return call


@pytest.fixture(scope="session")
def init_once(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Set the run's lab up with ``init``; again and by several workers at once is no harm."""
    folder = tmp_path_factory.mktemp("init")
    errors = Stream()
    session = Session(
        folder=folder,
        environ={},
        stdout=Stream(),
        stderr=errors,
        cluster=lambda _file, _context: connect_cluster(lab.kubeconfig, None),
        registries=unreachable,
    )
    code = run(["init"], session)
    assert code == 0, errors.getvalue()
