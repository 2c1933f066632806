"""A cluster for each worker, and in it a clean platform for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import Platform
from tests.lab import binaries
from tests.lab.core import apply as apply_core_kinds
from tests.lab.lab import Lab


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of this worker's own, initialised, with the kinds of Crossplane's core."""
    assert binaries is not None
    folder = tmp_path_factory.mktemp("cluster")
    with Lab.launch(folder / "lab", audit=True) as lab:
        (folder / "home").mkdir()
        Platform(lab, folder / "home").command("init")
        apply_core_kinds(lab.api)
        yield lab


@pytest.fixture
def platform(cluster: Lab, tmp_path: Path) -> Iterator[Platform]:
    """The worker's cluster, cleaned after the test."""
    platform = Platform(cluster, tmp_path)
    try:
        yield platform
    finally:
        platform.clean()


@pytest.fixture
def group(unique_name: str) -> str:
    """An API group that no other test uses."""
    return f"{unique_name}.example.org"
