"""What must hold whatever a hostile registry does, checked around one attempt."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.registry.failures import RegistryError
from tests.fakes.registry import Server
from tests.registry.test_tokens import ALICE, BOB

SECRETS = (ALICE.password, BOB.password, ALICE.basic.split()[1], BOB.basic.split()[1])
ERROR_MAX = 1024


class Raised:
    """The error of an attempt, once it ended."""

    error: RegistryError

    @property
    def text(self) -> str:
        return str(self.error)


def under_way() -> set[str]:
    """Return the tasks of the controller's own code that are not done."""
    current = asyncio.current_task()
    names = set()
    for task in asyncio.all_tasks():
        code = getattr(task.get_coro(), "cr_code", None)
        if task is not current and code is not None and "/controller/" in code.co_filename:
            names.add(code.co_qualname)
    return names


@contextlib.contextmanager
def refused(
    kind: type[RegistryError],
    match: str,
    *,
    folder: Path | None = None,
    forbidden: tuple[Server, ...] = (),
) -> Iterator[Raised]:
    """Expect an error of a kind, and that nothing was given away, left open or left behind.

    ``folder`` is as it was before; no request with credentials reached a ``forbidden`` server.
    """
    raised = Raised()
    before = sorted(folder.rglob("*")) if folder is not None else []
    with pytest.raises(kind, match=match) as found:
        yield raised
    raised.error = found.value
    assert len(raised.text) <= ERROR_MAX
    assert raised.text.isprintable()
    assert not any(secret in raised.text for secret in SECRETS)
    assert under_way() == set()
    if folder is not None:
        assert sorted(folder.rglob("*")) == before
    for server in forbidden:
        assert all(request.authorization is None for request in server.requests)
