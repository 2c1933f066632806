"""A registry that serves hostile layers, and what must hold however its package is refused."""

from __future__ import annotations

import io
import os
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from controller.cli.images import find_image, save_contents
from controller.cli.session import Progress
from controller.registry.reference import parse_reference
from controller.xpkg.errors import XpkgError
from tests.fakes.registry import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, FakeRegistry, serve
from tests.registry.conftest import ANONYMOUS, connected

MEMORY_MAX = 64 * 2**20


@dataclass
class Attack:
    """Fetches images made of given layers, as an honest registry serves them.

    Attributes:
        folder: where package.yaml goes, beside something that has to stay.
        requests: methods and paths that the registry saw, all without credentials.
    """

    folder: Path
    requests: list[tuple[str, str]] = field(default_factory=list)

    async def read(
        self,
        *layers: bytes,
        annotated: Sequence[int] = (),
        media_types: Sequence[str] = (),
        annotation: str = "base",
    ) -> bytes:
        """Return package.yaml of an image; whatever happens, nothing else is left behind."""
        kept = self.folder / "kept"
        kept.write_bytes(b"an entry of the cache")
        destination = self.folder / "package.yaml"
        registry = FakeRegistry()
        types = list(media_types) or [OCI_LAYER] * len(layers)
        registry.add_manifest(
            "acme/demo", _manifest(registry, layers, types, annotated, annotation), tag="v1"
        )
        tracemalloc.start()
        try:
            async with serve(registry) as server, connected() as client:
                reference = parse_reference(f"{server.address}/acme/demo:v1")
                line = Progress(io.StringIO(), width=80)
                found = await find_image(reference, client, ANONYMOUS, line)
                await save_contents(found, destination, None)
                return destination.read_bytes()
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            self.requests = [(each.method, each.target) for each in server.requests]
            destination.unlink(missing_ok=True)
            assert peak < MEMORY_MAX
            assert all(each.authorization is None for each in server.requests)
            assert kept.read_bytes() == b"an entry of the cache"
            assert os.listdir(self.folder) == ["kept"]  # noqa: PTH208 - names alone
            assert not _open_files()

    async def refused(self, *layers: bytes, error: type[XpkgError] = XpkgError, **how: Any) -> str:
        """Return the error's text; layers that came whole are not asked for again."""
        with pytest.raises(error) as caught:
            await self.read(*layers, **how)
        blobs = [path for _, path in self.requests if "/blobs/" in path]
        assert len(blobs) == len(set(blobs))
        text = str(caught.value)
        assert len(text) < 1024
        assert text.isprintable()
        return text


def _manifest(
    registry: FakeRegistry,
    layers: Sequence[bytes],
    types: Sequence[str],
    annotated: Sequence[int],
    annotation: str,
) -> dict[str, Any]:
    def described(at: int) -> dict[str, Any]:
        blob = {
            "mediaType": types[at],
            "digest": registry.add_blob(layers[at]),
            "size": len(layers[at]),
        }
        return blob | (
            {"annotations": {"io.crossplane.xpkg": annotation}} if at in annotated else {}
        )

    config = b"{}"
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": OCI_CONFIG,
            "digest": registry.add_blob(config),
            "size": len(config),
        },
        "layers": [described(at) for at in range(len(layers))],
    }


def _open_files() -> list[str]:
    """Return the files below temporary folders of a pull that this process has open."""
    links = Path("/proc/self/fd")
    if not links.is_dir():
        return []
    targets = []
    for link in links.iterdir():
        try:
            targets.append(str(link.readlink()))
        except FileNotFoundError:
            continue
    return [target for target in targets if "crossdock-pull-" in target]


@pytest.fixture
def attack(tmp_path: Path) -> Attack:
    folder = tmp_path / "cache"
    folder.mkdir()
    return Attack(folder)
