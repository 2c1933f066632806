"""Go builds: once per folder, whole or not at all, with Go's own words when they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import gobuild
from tests.lab.errors import LabError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
TARGET = gobuild.Target("tool", "example.test/m", {"main.version": "v7"})
_BUILDER = """
import os, sys
from pathlib import Path
from tests.lab import gobuild
gobuild.build([gobuild.Target("tool", "example.test/m", {"main.version": "v7"})],
              module=Path(sys.argv[1]), folder=Path(sys.argv[2]), environment=os.environ,
              announce=lambda line: print(line, flush=True))
"""


@pytest.fixture
def module(tmp_path):
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / "go.mod").write_text("module example.test/m\n\ngo 1.21\n")
    (folder / "main.go").write_text(
        'package main\n\nvar version = "none"\n\nfunc main() { println(version) }\n'
    )
    return folder


def build(module, folder):
    said: list[str] = []
    found = gobuild.build(
        [TARGET], module=module, folder=folder, environment=os.environ, announce=said.append
    )
    return found["tool"], said


def test_a_program_is_built_once_with_its_version(module, tmp_path):
    path, said = build(module, tmp_path / "cache")
    answer = subprocess.run([path], capture_output=True, text=True, check=True)
    assert answer.stderr == "v7\n"
    assert said[0].startswith("building tool (1 of 1)")
    assert "done in" in said[-1]
    assert sorted(each.name for each in path.parent.iterdir()) == ["tool"]
    assert build(module, tmp_path / "cache") == (path, [])


def test_a_failed_build_tells_what_go_said_and_leaves_nothing(module, tmp_path):
    (module / "main.go").write_text("package main\n\nfunc main() { missing() }\n")
    with pytest.raises(LabError, match="undefined: missing"):
        build(module, tmp_path / "cache")
    assert list((tmp_path / "cache" / "bin").iterdir()) == []


def test_two_builders_do_not_collide_and_one_alone_builds(module, tmp_path):
    command = [sys.executable, "-c", _BUILDER, str(module), str(tmp_path / "cache")]
    builders = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = "".join(builder.communicate(timeout=120)[0] for builder in builders)
    assert [builder.returncode for builder in builders] == [0, 0]
    assert said.count("done in") == 1


def test_what_a_killed_builder_left_is_removed(module, tmp_path):
    programs = tmp_path / "cache" / "bin"
    programs.mkdir(parents=True)
    (programs / ".tool.1.tmp").write_text("half")
    path, _ = build(module, tmp_path / "cache")
    assert sorted(each.name for each in programs.iterdir()) == [path.name]


def test_a_build_that_takes_too_long_is_ended(module, tmp_path, monkeypatch):
    monkeypatch.setattr(gobuild, "BUILD_SECONDS", 0)
    with pytest.raises(LabError, match="took longer"):
        build(module, tmp_path / "cache")
