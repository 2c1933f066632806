"""All tests of this room run in virtual time, and keep their logs to themselves."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import structlog

from tests.fakes.clock import VirtualTimeLoop


def pytest_asyncio_loop_factories(config: Any, item: Any) -> Mapping[str, Callable[[], Any]]:
    return {"virtual": VirtualTimeLoop}


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """Every line that the test logged."""
    with structlog.testing.capture_logs() as lines:
        yield lines
