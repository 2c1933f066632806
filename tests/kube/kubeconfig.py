"""Kubeconfigs for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(
    path: Path,
    server: str,
    *,
    user: dict[str, Any] | None = None,
    cluster: dict[str, Any] | None = None,
    namespace: str | None = None,
) -> Path:
    """Write a kubeconfig with one context, ``main``."""
    context: dict[str, Any] = {"cluster": "c", "user": "u"}
    if namespace is not None:
        context["namespace"] = namespace
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "main",
        "contexts": [{"name": "main", "context": context}],
        "clusters": [{"name": "c", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
    }
    path.write_text(json.dumps(config))
    return path


def moved(source: Path, target: Path, server: str) -> Path:
    """Copy a kubeconfig (JSON) with another server in all its clusters."""
    config = json.loads(source.read_text())
    for each in config["clusters"]:
        each["cluster"]["server"] = server
    target.write_text(json.dumps(config))
    return target
