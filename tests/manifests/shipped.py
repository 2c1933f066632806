"""What ``manifests/`` holds, as objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"


def load(*parts: str) -> list[dict[str, Any]]:
    """Return the objects of a file, or of all files of a folder, in the order of their names."""
    path = MANIFESTS.joinpath(*parts)
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    return [obj for file in files for obj in yaml.safe_load_all(file.read_text())]
