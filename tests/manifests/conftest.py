"""The lab's API server with what ``manifests/crds`` and ``manifests/rbac`` hold, and helm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import binaries
from tests.lab.lab import Lab
from tests.manifests.api import Api
from tests.manifests.chart import Render, Rendered, template
from tests.manifests.shipped import load


@pytest.fixture(scope="session")
def api(lab: Lab) -> Iterator[Api]:
    """The administrator's view of an API server that serves the nine kinds."""
    with Api(lab.server, lab.token, lab.authority) as admin:
        crds = load("crds")
        for obj in [*load("rbac"), *crds]:
            admin.apply(obj).accepted()
        deadline = time.monotonic() + 30
        while not all(established(admin, crd) for crd in crds):
            assert time.monotonic() < deadline, "the API server does not serve the kinds"
            time.sleep(0.1)
        yield admin


def established(api: Api, crd: dict[str, Any]) -> bool:
    """Tell whether the API server serves every version of a definition."""
    name = crd["metadata"]["name"]
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    stored = api.get(f"{path}/{name}").accepted()
    conditions = {c["type"]: c["status"] for c in stored["status"].get("conditions", [])}
    if conditions.get("Established") != "True":
        return False
    spec = crd["spec"]
    return all(
        api.get(f"/apis/{spec['group']}/{version['name']}/{spec['names']['plural']}").code == 200
        for version in spec["versions"]
    )


@pytest.fixture(scope="session")
def helm() -> Path:
    """The helm that the lab knows, or that is on PATH."""
    if binaries.absent(["helm"]):
        pytest.skip("helm is missing: run `python -m tests.lab build --with helm`")
    return binaries.resolve(["helm"], announce=lambda _: None)["helm"]


@pytest.fixture
def render(helm: Path, tmp_path: Path) -> Render:
    """Render the chart with some values."""

    def rendered(**values: Any) -> Rendered:
        done = template(helm, tmp_path, values)
        assert done.returncode == 0, done.stderr
        objects = [obj for obj in yaml.safe_load_all(done.stdout) if obj]
        return {(obj["kind"], obj["metadata"]["name"]): obj for obj in objects}

    return rendered
