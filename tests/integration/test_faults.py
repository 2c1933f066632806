"""The API server and the manager die in the middle of an install; nothing is lost or doubled."""

import signal
import time
from pathlib import Path

import pytest

from controller.model.objects import CRD, PROVIDER
from tests.integration.harness import Platform, crd, depends_on, eventually, meta
from tests.lab.core import apply as apply_core_kinds
from tests.lab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

KINDS = [f"kind{number}s" for number in range(60)]


def push_platform(platform: Platform, group: str) -> str:
    provider, function = platform.image("whole/prov"), platform.image("whole/func")
    platform.push(provider, [meta("Provider", "prov"), *(crd(group, kind) for kind in KINDS)])
    platform.push(function, [meta("Function", "func")])
    image = platform.image("acme/conf")
    needs = [
        depends_on("Provider", provider, ">=v1.0.0"),
        depends_on("Function", function, ">=v1.0.0"),
    ]
    platform.push(image, [meta("Configuration", "conf", dependsOn=needs)])
    return image


def check_whole(platform: Platform, group: str) -> None:
    """Everything is installed, once, and owned by the one revision of its package."""
    for kind, name in (
        ("Configuration", "conf"),
        ("Provider", "whole-prov"),
        ("Function", "whole-func"),
    ):
        platform.wait_healthy(kind, name)
        assert len(platform.revisions(kind, name)) == 1
    definitions = [c for c in platform.list(CRD) if c["spec"]["group"] == group]
    assert len(definitions) == len(KINDS)
    (revision,) = platform.revisions("Provider", "whole-prov")
    for definition in definitions:
        owners = definition["metadata"]["ownerReferences"]
        assert [o["uid"] for o in owners if o.get("controller")] == [revision["metadata"]["uid"]]
    assert len(platform.deployments()) == 2


def started(platform: Platform, group: str, count: int) -> None:
    """Wait until some of the definitions exist."""
    eventually(
        lambda: sum(c["spec"]["group"] == group for c in platform.list(CRD)) >= count,
        f"{count} definitions\n{platform.tails()}",
    )


@pytest.mark.parametrize("count", [0, 1, 20, 50])
def test_a_manager_killed_in_the_middle_of_an_install_goes_on_where_it_was(
    platform: Platform, group: str, count: int
):
    image = push_platform(platform, group)
    manager = platform.start()
    platform.install("Configuration", "conf", image)
    started(platform, group, count)
    manager.stop(signal.SIGKILL)
    platform.start()
    check_whole(platform, group)


def test_a_manager_killed_again_and_again_still_gets_there(platform: Platform, group: str):
    image = push_platform(platform, group)
    platform.install("Configuration", "conf", image)
    for pause in (0.0, 0.1, 0.2, 0.4, 0.8):
        manager = platform.start()
        time.sleep(pause)
        manager.stop(signal.SIGKILL)
    platform.start()
    check_whole(platform, group)


@pytest.mark.parametrize("count", [0, 20])
def test_an_api_server_killed_in_the_middle_of_an_install_is_waited_for(
    own_lab: Lab, tmp_path: Path, group: str, count: int
):
    (tmp_path / "home").mkdir()
    platform = Platform(own_lab, tmp_path / "home")
    platform.command("init")
    apply_core_kinds(own_lab.api)
    image = push_platform(platform, group)
    manager = platform.start()
    try:
        platform.install("Configuration", "conf", image)
        started(platform, group, count)
        own_lab.kill("kube-apiserver")
        time.sleep(2)
        own_lab.start("kube-apiserver")
        check_whole(platform, group)
        assert manager.process.poll() is None
        assert manager.stop() == 0
    finally:
        manager.stop(signal.SIGKILL)


def test_a_stop_in_the_middle_of_an_install_is_quick_and_loses_nothing(
    platform: Platform, group: str
):
    image = push_platform(platform, group)
    manager = platform.start()
    platform.install("Configuration", "conf", image)
    started(platform, group, 5)
    assert manager.stop(signal.SIGTERM) == 0
    platform.start()
    check_whole(platform, group)


def test_a_package_deleted_while_the_manager_was_down_is_cleaned_up_after(
    platform: Platform, group: str
):
    image = platform.image("acme/away")
    platform.push(image, [meta("Provider", "away"), crd(group)])
    manager = platform.start()
    platform.install("Provider", "away", image)
    platform.wait_healthy("Provider", "away")
    manager.stop(signal.SIGKILL)
    platform.delete(PROVIDER, "away")
    platform.start()
    eventually(lambda: not platform.revisions("Provider", "away"), "the revision goes", 90)
