"""``--fuzz-seconds N`` fuzzes for so long in all; without it every property is tried briefly."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seconds", type=float, default=0.0, help="how long to fuzz in all")


@pytest.fixture
def fuzz_seconds(request: pytest.FixtureRequest) -> float:
    """Seconds for one property; 0 for a brief try."""
    total: float = request.config.getoption("fuzz_seconds", 0.0)
    properties = [
        i for i in request.session.items if "fuzz_seconds" in getattr(i, "fixturenames", ())
    ]
    return total / max(1, len(properties))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let long properties run to their end."""
    seconds: float = config.getoption("fuzz_seconds", 0.0)
    for item in items:
        if seconds and item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(seconds + 300))
