"""The example packages: each is what it says, and together they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.model.objects import dns_label
from controller.model.semver import Constraint, Version
from tests.manifests.api import Api
from tests.manifests.shipped import MANIFESTS, load

EXAMPLES = MANIFESTS / "examples"
REGISTRY = "xpkg.example.org/"
PUSHED = "127.0.0.1:5000/"


def package(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the metadata and the objects of an example."""
    folder = EXAMPLES / name
    meta = yaml.safe_load((folder / "crossplane.yaml").read_text())
    files = sorted(path for path in folder.rglob("*.yaml") if path.name != "crossplane.yaml")
    return meta, [obj for file in files for obj in yaml.safe_load_all(file.read_text())]


def installed() -> dict[str, dict[str, Any]]:
    """Return the packages of the install manifests by their kind."""
    packages = [obj for obj in load("examples", "install") if "package" in obj["spec"]]
    return {obj["kind"]: obj for obj in packages}


def split(reference: str) -> tuple[str, str]:
    source, _, tag = reference.rpartition(":")
    return source, tag


@pytest.mark.parametrize("kind", ["Provider", "Function", "Configuration"])
def test_folders_are_named_as_their_packages_and_pushed_under_that_name(kind):
    name = f"{kind.lower()}-demo"
    meta, objects = package(name)
    assert (meta["apiVersion"], meta["kind"]) == ("meta.pkg.crossplane.io/v1", kind)
    assert meta["metadata"]["name"] == name
    assert split(installed()[kind]["spec"]["package"])[0] == f"{REGISTRY}crossdock/{name}"
    assert objects


def test_the_provider_has_three_definitions_one_of_them_in_two_versions():
    _, objects = package("provider-demo")
    assert {obj["kind"] for obj in objects} == {"CustomResourceDefinition"}
    versions = {obj["spec"]["names"]["kind"]: obj["spec"]["versions"] for obj in objects}
    assert {kind: len(each) for kind, each in versions.items()} == {
        "ProviderConfig": 1,
        "Bucket": 2,
        "Database": 1,
    }
    stored = [version["name"] for version in versions["Bucket"] if version["storage"]]
    assert stored == ["v1beta1"]


def test_the_configurations_dependencies_are_satisfied_by_the_examples():
    meta, _ = package("configuration-demo")
    packages = installed()
    wanted = {dependency["kind"]: dependency for dependency in meta["spec"]["dependsOn"]}
    assert set(wanted) == {"Provider", "Function"}
    for kind, dependency in wanted.items():
        source, tag = split(packages[kind]["spec"]["package"])
        assert dependency["package"] == source
        assert Constraint.parse(dependency["version"]).matches(Version.parse(tag))
        assert not Constraint.parse(dependency["version"]).matches(Version.parse("v2.0.0"))


def test_packages_installed_by_hand_have_the_names_that_dependencies_get():
    packages = installed()
    for kind in ("Provider", "Function"):
        source, _ = split(packages[kind]["spec"]["package"])
        assert packages[kind]["metadata"]["name"] == dns_label(source.removeprefix(REGISTRY))


def test_the_composition_fits_its_definition_its_function_and_the_providers_kinds():
    _, (composition, definition) = package("configuration-demo")
    spec = composition["spec"]
    names, group = definition["spec"]["names"], definition["spec"]["group"]
    [version] = definition["spec"]["versions"]
    assert definition["metadata"]["name"] == f"{names['plural']}.{group}"
    assert spec["compositeTypeRef"] == {
        "apiVersion": f"{group}/{version['name']}",
        "kind": names["kind"],
    }
    [step] = spec["pipeline"]
    assert step["functionRef"]["name"] == installed()["Function"]["metadata"]["name"]
    [templates] = package("function-demo")[1]
    [served] = templates["spec"]["versions"]
    assert step["input"]["apiVersion"] == f"{templates['spec']['group']}/{served['name']}"
    assert step["input"]["kind"] == templates["spec"]["names"]["kind"]
    kinds = {
        (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"])
        for crd in package("provider-demo")[1]
        for version in crd["spec"]["versions"]
    }
    bases = [resource["base"] for resource in step["input"]["resources"]]
    assert {(base["apiVersion"], base["kind"]) for base in bases} <= kinds


def test_the_image_config_leads_every_example_to_one_registry():
    [config] = load("examples", "install", "image-config.yaml")
    [match] = config["spec"]["matchImages"]
    for obj in installed().values():
        assert obj["spec"]["package"].startswith(match["prefix"])
    assert config["spec"]["rewriteImage"]["prefix"] == match["prefix"].replace(REGISTRY, PUSHED)
    text = (EXAMPLES / "install" / "image-config.yaml").read_text()
    assert text.count(f"prefix: {PUSHED}") == 1


def test_the_readme_names_every_package_as_it_is_installed():
    text = (EXAMPLES / "README.md").read_text()
    for obj in installed().values():
        assert f"`{obj['spec']['package']}`" in text


@pytest.mark.lab
def test_the_api_server_takes_the_definitions(api: Api):
    for obj in [*package("provider-demo")[1], *package("function-demo")[1]]:
        obj["metadata"]["name"] = dry(obj)
        api.create(obj).accepted()


def dry(definition: dict[str, Any]) -> str:
    """Move a definition to a group where no other test has it, and return its name there."""
    spec = definition["spec"]
    spec["group"] = f"dry.{spec['group']}"
    return f"{spec['names']['plural']}.{spec['group']}"


@pytest.mark.lab
@pytest.mark.parametrize(
    "path", sorted((EXAMPLES / "install").glob("*.yaml")), ids=lambda path: path.name
)
def test_the_api_server_takes_the_install_manifests(api: Api, path: Path, unique_name):
    for obj in yaml.safe_load_all(path.read_text()):
        obj["metadata"]["name"] = unique_name
        api.create(obj).accepted()
