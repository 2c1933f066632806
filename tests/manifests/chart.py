"""Rendering the chart with helm, and finding one's way in what comes out."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from tests.manifests.shipped import MANIFESTS

CHART = MANIFESTS / "chart"
SYSTEM = "crossplane-system"
CACHE = "/cache/xpkg"

Rendered: TypeAlias = dict[tuple[str, str], dict[str, Any]]  # by kind and name
Render: TypeAlias = Callable[..., Rendered]


def run(helm: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm without the user's settings."""
    own = {"HOME": str(folder), "HELM_CACHE_HOME": str(folder), "HELM_CONFIG_HOME": str(folder)}
    return subprocess.run(
        [helm, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | own | {"KUBECONFIG": os.devnull},
    )


def template(
    helm: Path, folder: Path, values: dict[str, Any], *more: str, chart: Path = CHART
) -> subprocess.CompletedProcess[str]:
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    arguments = ("template", "crossdock", str(chart), "--namespace", SYSTEM, "--values", str(file))
    return run(helm, folder, *arguments, *more)


def pod(rendered: Rendered) -> dict[str, Any]:
    spec: dict[str, Any] = rendered["Deployment", "crossdock"]["spec"]["template"]["spec"]
    return spec


def manager(rendered: Rendered) -> dict[str, Any]:
    [container] = pod(rendered)["containers"]
    found: dict[str, Any] = container
    return found


def init(rendered: Rendered) -> dict[str, Any]:
    [container] = pod(rendered)["initContainers"]
    found: dict[str, Any] = container
    return found


def volume(rendered: Rendered, name: str) -> dict[str, Any]:
    [found] = [dict(each) for each in pod(rendered)["volumes"] if each["name"] == name]
    del found["name"]
    return found


def mount(rendered: Rendered, name: str) -> dict[str, Any]:
    mounts = manager(rendered)["volumeMounts"]
    [found] = [dict(each) for each in mounts if each["name"] == name]
    del found["name"]
    return found


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
