"""Core kinds: definitions, cut to their shape, of the kinds that Crossplane's core serves."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.lab.apiserver import APPLY, ApiServer
from tests.lab.errors import LabError

FOLDER = Path(__file__).parent / "crds"
SECONDS = 30.0
_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
# Where a cluster serves it, the manager makes managed resource definitions of providers' CRDs:
# never among the default ones.
MANAGED = "managedresourcedefinitions.apiextensions.crossplane.io"


def names() -> tuple[str, ...]:
    """Name the definitions that are applied by default: all but MANAGED."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def apply(api: ApiServer, wanted: Iterable[str] | None = None) -> tuple[str, ...]:
    """Apply definitions and wait until the API server serves their kinds.

    Args:
        api: the API server.
        wanted: names of definitions (``plural.group``); None for the default ones.

    Returns:
        The names that were applied.

    Raises:
        LabError: a name is unknown, a definition is refused or not served in time.
    """
    chosen = names() if wanted is None else tuple(wanted)
    paths: list[str] = []
    for name in chosen:
        body = _file(name).read_bytes()
        query = "fieldManager=crossdock-lab&force=true"
        answer = api.expect("PATCH", f"{_PATH}/{name}?{query}", body, content_type=APPLY)
        paths += _collections(answer["spec"])
    deadline = time.monotonic() + SECONDS
    for path in paths:
        # Established comes earlier: for a moment the kind is then refused with 404 or 429.
        while api.request("GET", f"{path}?limit=1")[0] != 200:
            if time.monotonic() > deadline:
                raise LabError(f"{path} is not served after {SECONDS:.0f} s")
            time.sleep(0.05)
    return chosen


def remove(api: ApiServer, wanted: Iterable[str]) -> None:
    """Remove definitions and every object of their kinds."""
    for name in wanted:
        status, _ = api.request("DELETE", f"{_PATH}/{name}")
        deadline = time.monotonic() + SECONDS
        while status != 404:
            if time.monotonic() > deadline:
                raise LabError(f"{name} is still there after {SECONDS:.0f} s")
            time.sleep(0.05)
            status, _ = api.request("GET", f"{_PATH}/{name}")


def _file(name: str) -> Path:
    for folder in (FOLDER, FOLDER / "on-request"):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path
    raise LabError(f"no definition {name}; there are {', '.join((*names(), MANAGED))}")


def _collections(spec: dict[str, Any]) -> list[str]:
    """Name the path of each served version of a definition."""
    group, plural = spec["group"], spec["names"]["plural"]
    versions = [each["name"] for each in spec["versions"] if each["served"]]
    return [f"/apis/{group}/{version}/{plural}" for version in versions]
