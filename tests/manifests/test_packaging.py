"""The wheel and the image: what is shipped is in them, what is not needed stays out."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.manifests.shipped import MANIFESTS

REPOSITORY = MANIFESTS.parent
DOCKERFILE = REPOSITORY / "Dockerfile"
BUILD_SECONDS = 900


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments, comments left out."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def test_a_wheel_holds_the_manifests_that_init_applies_and_a_whole_chart(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        timeout=120,
    )
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for folder in ("crds", "rbac", "chart/rbac", "chart/templates", "examples/install"):
            files = sorted(MANIFESTS.joinpath(folder).glob("*.yaml"))
            assert files
            for file in files:
                name = f"controller/manifests/{file.relative_to(MANIFESTS)}"
                assert archive.read(name) == file.read_bytes()


def test_the_image_runs_the_command_as_nobody_in_particular():
    last = dict(instructions())
    assert last["USER"] == "65532:65532"
    assert json.loads(last["ENTRYPOINT"]) == ["/opt/crossdock/bin/crossdock"]


def test_the_last_stage_runs_nothing_and_copies_from_the_build_only():
    found = instructions()
    start = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    final = found[start + 1 :]
    assert "RUN" not in {name for name, _ in final}
    copies = [arguments for name, arguments in final if name == "COPY"]
    assert copies
    assert all("--from=build" in arguments for arguments in copies)


def test_every_file_from_an_index_is_checked_against_the_lock():
    installs = [text for name, text in instructions() if name == "RUN" and "pip" in text]
    steps = [step for text in installs for step in text.split("&&") if "/pip" in step]
    assert steps
    for step in steps:
        assert "--no-index" in step or "--require-hashes" in step


def test_all_that_the_image_is_built_from_is_let_through():
    ignored = (REPOSITORY / ".dockerignore").read_text().split("\n")
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    sources = {
        source
        for name, arguments in instructions()
        if name == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    }
    assert sources == allowed
    for source in sources:
        assert (REPOSITORY / source).exists()
        assert not any(
            fnmatch.fnmatch(source, line) for line in ignored if line and line[0] not in "!*#"
        )


@pytest.fixture
def docker() -> str:
    """The docker command, with an engine and the image's base at hand."""
    command = shutil.which("docker")
    if command is None:
        pytest.skip("no docker command on PATH")
    base = os.environ.get("CROSSDOCK_PYTHON_IMAGE", "python:3.13-slim")
    for arguments, lacking in (
        (("version",), "no Docker engine answers"),
        (("image", "inspect", base), f"{base} is not on this machine: docker pull {base}"),
    ):
        asked = subprocess.run([command, *arguments], capture_output=True, timeout=60, check=False)
        if asked.returncode != 0:
            pytest.skip(lacking)
    return command


@pytest.mark.timeout(BUILD_SECONDS)
def test_the_image_is_built_and_runs_with_nothing_writable(docker, unique_name):
    base = os.environ.get("CROSSDOCK_PYTHON_IMAGE", "python:3.13-slim")
    build = ["build", "--network", "host", "--build-arg", f"PYTHON_IMAGE={base}"]
    tag = f"crossdock:{unique_name}"

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [docker, *arguments], capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        run(*build, "--tag", tag, str(REPOSITORY))
        hard = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
        said = run("run", "--rm", "--network=none", *hard, tag, "version")
        assert "crossdock" in said
    finally:
        subprocess.run([docker, "rmi", "--force", tag], capture_output=True, check=False)
