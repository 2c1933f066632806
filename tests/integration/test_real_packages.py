"""Real, public packages, built from their sources and installed."""

import json
import tarfile
from pathlib import Path

import pytest

from controller.model.objects import CRD, PROVIDER, Resource
from tests.integration.harness import Platform, conditions, crd, eventually, meta

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SHARED = Path(__file__).resolve().parents[3] / "shared" / "packages"
SUBSET = 300  # definitions of the largest provider
VALIDATING = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "validatingwebhookconfigurations",
    "ValidatingWebhookConfiguration",
)


def source(name: str) -> Path:
    folder = SHARED / name
    if not folder.exists():
        pytest.skip(f"the real package {name} is not here ({folder})")
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "definitions"),
    [
        ("provider-nop", "Provider", 1),
        ("provider-kubernetes", "Provider", 9),
        ("function-patch-and-transform", "Function", 0),
    ],
)
def test_a_real_package_is_built_pushed_and_installed(
    platform: Platform, name: str, kind: str, definitions: int
):
    image = platform.image(f"real/{name}")
    digest = platform.push_folder(image, source(name) / "package")
    platform.start("--crossplane-version", "v2.4.0")
    platform.install(kind, name, image)
    platform.wait_healthy(kind, name)
    (revision,) = platform.revisions(kind, name)
    assert revision["metadata"]["annotations"]["crossdock.io/digest"] == digest
    references = revision["status"].get("objectRefs") or []
    found = [r for r in references if r["kind"] == "CustomResourceDefinition"]
    assert len(found) == definitions
    for reference in references:
        assert reference["uid"]


def test_webhook_configurations_and_conversions_point_at_the_package(platform: Platform):
    for name in ("provider-nop", "provider-kubernetes"):
        platform.push_folder(platform.image(f"real/{name}"), source(name) / "package")
    platform.start()
    for name in ("provider-nop", "provider-kubernetes"):
        platform.install("Provider", name, platform.image(f"real/{name}"))
        platform.wait_healthy("Provider", name)
    webhooks = [
        w["metadata"]["name"]
        for w in platform.list(VALIDATING)
        if w["metadata"]["name"].startswith("crossplane-provider-")
    ]
    assert webhooks == ["crossplane-provider-provider-nop"]
    objects = platform.get(CRD, "objects.kubernetes.crossplane.io")
    assert objects is not None
    hook = objects["spec"]["conversion"]["webhook"]["clientConfig"]
    assert hook["service"]["name"] == "provider-kubernetes"
    assert hook["caBundle"]


def unpack(folder: Path, count: int) -> Path:
    """Unpack a part of the largest provider."""
    package = source("provider-aws")
    (folder / "crds").mkdir(parents=True)
    (folder / "crossplane.yaml").write_text((package / "crossplane.yaml").read_text())
    with tarfile.open(package / "crds.tar.xz") as archive:
        for member in sorted((m for m in archive if m.isfile()), key=lambda m: m.name)[:count]:
            content = archive.extractfile(member)
            assert content is not None
            (folder / "crds" / Path(member.name).name).write_bytes(content.read())
    return folder


def test_three_hundred_real_definitions_are_installed_with_one_write_each(
    platform: Platform, tmp_path: Path
):
    image = platform.image("real/provider-aws")
    platform.push_folder(image, unpack(tmp_path / "aws", SUBSET))
    platform.start()
    mark = platform.lab.mark()
    platform.install("Provider", "provider-aws", image)
    eventually(
        lambda: (
            conditions(platform.get(PROVIDER, "provider-aws")).get("Healthy", {}).get("status")
            == "True"
        ),
        lambda: f"healthy\n{platform.tails()}",
        300,
    )
    (revision,) = platform.revisions("Provider", "provider-aws")
    assert len(revision["status"]["objectRefs"]) == SUBSET
    writes = [w for w in platform.writes(mark) if "customresourcedefinitions" in w]
    assert len(writes) == SUBSET, writes[SUBSET:]


def test_generated_packages_of_the_same_shape_are_installed_with_one_write_each(
    platform: Platform, group: str
):
    definitions = [crd(group, f"kind{n}s", ("v1", "v1beta1")) for n in range(100)]
    image = platform.image("acme/generated")
    platform.push(image, [meta("Provider", "generated"), *definitions])
    platform.start()
    mark = platform.lab.mark()
    platform.install("Provider", "generated", image)
    platform.wait_healthy("Provider", "generated")
    writes = [w for w in platform.writes(mark) if "customresourcedefinitions" in w]
    assert len(writes) == len(definitions), json.dumps(writes, indent=1)
