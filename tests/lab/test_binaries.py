"""Binaries are looked for in one order, and what cannot be had is named with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import binaries, fetch
from tests.lab.binaries import CATALOGUE, Facts, Source, choose
from tests.lab.errors import LabError

ETCD = CATALOGUE["etcd"]
GOOD = "#!/bin/sh\necho 'etcd Version: 3.6.8'\n"
FOREIGN = "#!/bin/sh\necho 'etcd Version: 2.3.8'\n"


def program(folder: Path, name: str, content: str = GOOD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(content)
    path.chmod(0o755)
    return path


@pytest.fixture
def variables(tmp_path):
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"}


@pytest.fixture
def offline():
    return fetch.Downloader(base=None, enabled=False, announce=lambda _: None)


FOLDER, ON_PATH, CACHED = Path("/folder/x"), Path("/path/x"), Path("/cache/x")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(FOLDER, ON_PATH, CACHED, True, True), (Source.FOLDER, FOLDER)),
        (Facts(None, ON_PATH, CACHED, True, True), (Source.PATH, ON_PATH)),
        (Facts(None, None, CACHED, True, True), (Source.CACHE, CACHED)),
        (Facts(None, None, None, True, True), (Source.DOWNLOAD, None)),
        (Facts(None, None, None, False, True), (Source.BUILD, None)),
        (Facts(None, None, None, True, False), (Source.DOWNLOAD, None)),
        (Facts(), (Source.NOWHERE, None)),
    ],
)
def test_the_order_is_folder_path_cache_download_build(facts, expected):
    assert choose(facts) == expected


def test_each_place_is_found_where_it_is(tmp_path, variables):
    root = binaries.cache_root(variables)

    def look() -> Facts:
        return binaries.look(ETCD, variables=variables, announce=lambda _: None)

    assert look() == Facts()
    released = program(root / "releases" / f"etcd-{binaries.ETCD}", "etcd")
    assert look() == Facts(cache=released)
    built = program(binaries.module_folder(root, "tools") / "bin", "etcd")
    assert look() == Facts(cache=built)
    variables["PATH"] = str(tmp_path / "on-path") + ":/usr/bin:/bin"
    on_path = program(tmp_path / "on-path", "etcd")
    assert look() == Facts(path=on_path)
    variables["KUBEBUILDER_ASSETS"] = str(tmp_path / "assets")
    asset = program(tmp_path / "assets", "etcd")
    assert look() == Facts(folder=asset)
    variables["CROSSDOCK_LAB_BIN"] = str(tmp_path / "own")
    assert look() == Facts(folder=asset)
    own = program(tmp_path / "own", "etcd")
    assert look() == Facts(folder=own)


def test_a_program_of_the_same_name_or_an_old_one_on_path_is_passed_over(tmp_path, variables):
    said: list[str] = []
    variables["PATH"] = str(tmp_path / "on-path") + ":/usr/bin:/bin"
    program(tmp_path / "on-path", "etcd", FOREIGN)
    assert binaries.look(ETCD, variables=variables, announce=said.append) == Facts()
    assert "passed over" in said[0]


def test_what_can_neither_be_downloaded_nor_built_is_named_with_every_remedy(variables, offline):
    with pytest.raises(LabError) as caught:
        binaries.resolve(
            ("etcd", "kwok"), environment=variables, announce=lambda _: None, downloader=offline
        )
    message = str(caught.value)
    assert f"etcd {binaries.ETCD}" in message
    assert f"kwok {binaries.KWOK}" in message
    for remedy in ("https://go.dev/dl", "CROSSDOCK_LAB_BIN", "https://github.com"):
        assert remedy in message


def test_the_cache_folder_changes_with_what_pins_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(binaries, "GO", tmp_path)
    module = tmp_path / "m"
    module.mkdir()
    (module / "go.mod").write_text("module m\n")
    (module / "go.sum").write_text("a\n")
    first = binaries.module_folder(tmp_path, "m")
    assert binaries.module_folder(tmp_path, "m") == first
    (module / "go.sum").write_text("b\n")
    assert binaries.module_folder(tmp_path, "m") != first


def test_every_binary_is_pinned_in_its_module_at_the_version_of_the_catalogue():
    for binary in CATALOGUE.values():
        content = (binaries.GO / binary.module / "go.mod").read_text()
        assert f"\t{binary.package}\n" in content or f"tool {binary.package}\n" in content
        assert f" v{binary.version}" in content
