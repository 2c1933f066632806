"""Fixtures: one lab for a whole test run, labs of a test's own, and namespaces in them.

``tests/conftest.py`` loads them with ``pytest_plugins = ["tests.lab.plugin"]``.

How the run's lab lives: its folder lies in the run's temporary folder, which all xdist workers
share. The first worker that needs it starts a supervisor there (a lock file lets one do so while
the others wait); every worker holds a shared lock on another file for as long as it lives. The
last one to finish ends the lab and waits for it. The kernel drops the lock of a worker that is
killed, so the supervisor, which looks at that file all the time, sees that nobody is left and
ends the lab by itself; and when the supervisor is killed, the kernel ends the components with it.
A new worker in place of a killed one finds the same lab by its folder.

CROSSDOCK_LAB names the folder of a lab that runs already (``python -m tests.lab up --audit``):
the run then uses that one and leaves it running.

Nothing is downloaded or built here, because a test's time limit would end it half-way:
``python -m tests.lab build`` comes first, and ``make test`` sees to it.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import binaries
from tests.lab.errors import LabError
from tests.lab.lab import Lab


def run_folder(base: Path, *, worker: str | None) -> Path:
    """Name the folder that all workers of one run have in common.

    Args:
        base: the temporary folder of this process's session.
        worker: name of the xdist worker, None without xdist.

    Returns:
        The folder of the whole run: xdist gives each worker a folder inside it.
    """
    return base if worker is None else base.parent


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The run's lab, with an audit log; tests leave its components running."""
    chosen = os.environ.get("CROSSDOCK_LAB")
    if chosen:
        with Lab.attach(Path(chosen)) as found:
            yield found
        return
    _need_binaries()
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    folder = run_folder(tmp_path_factory.getbasetemp(), worker=worker) / "lab"
    with Lab.launch(folder, audit=True) as found:
        yield found


@pytest.fixture
def own_lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab of this test alone, whose components it may kill, freeze and start again."""
    _need_binaries()
    with Lab.launch(tmp_path / "lab", audit=True) as found:
        yield found


@pytest.fixture
def unique_name() -> str:
    """A name that no other test uses, fit for any object; nothing is made."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def namespace(lab: Lab, unique_name: str) -> Iterator[str]:
    """A namespace of this test alone; its deletion is asked for at the end, not waited for."""
    api = lab.api
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": unique_name}}
    api.expect("POST", "/api/v1/namespaces", body)
    yield unique_name
    with contextlib.suppress(LabError):
        api.request("DELETE", f"/api/v1/namespaces/{unique_name}")


def _need_binaries() -> None:
    missing = binaries.absent(binaries.LAB)
    if missing:
        pytest.fail(
            f"the lab needs {', '.join(missing)}: run `python -m tests.lab build` first",
            pytrace=False,
        )
