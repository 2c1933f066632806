"""Interoperation: who wrote a package, by who reads it; every cell of the table is a test.

Writers: this command line, the reference builder (golden vector), crane, skopeo. Readers: this
command line, crane, skopeo, the distribution registry, and Docker where a daemon answers.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.cli.command import run
from controller.cli.session import Session, connect_registries
from controller.xpkg.archive import Archive
from tests.lab import binaries
from tests.xpkg.layouts import EMPTY, Layout
from tests.xpkg.tars import make_tar, member, tree
from tests.xpkg.test_archive import VECTORS

pytestmark = pytest.mark.lab

META = "apiVersion: meta.pkg.crossplane.io/v1\nkind: Function\nmetadata:\n  name: demo\n"
STREAM = f"---\n{META}---\n".encode()
GOLDEN = VECTORS / "golden.xpkg"
GOLDEN_STREAM = VECTORS / "package.yaml"
BINARY = make_tar(member("function", b"\x7fELF" * 1000))
BASE = {"io.crossplane.xpkg": "base"}
EXAMPLES = {"io.crossplane.xpkg": "upbound"}

Call = Callable[..., str]


@pytest.fixture
def crossdock(tmp_path) -> Call:
    """Run one command line in the test's folder, with real registries; return its output."""

    def call(*argv: str) -> str:
        out, err = io.StringIO(), io.StringIO()
        session = Session(
            folder=tmp_path, environ={}, stdout=out, stderr=err, registries=connect_registries
        )
        assert run(argv, session) == 0, err.getvalue()
        return out.getvalue()

    return call


def program(name: str) -> str:
    if name == "crane" and "crane" not in binaries.absent(["crane"]):
        return str(binaries.resolve(["crane"], announce=print)["crane"])
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


def tool(name: str, folder: Path) -> Call:
    """Run another client; return its output."""
    path = program(name)
    folder.mkdir(exist_ok=True)
    variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder)}

    def call(*argv: str) -> str:
        command = [path, *argv]
        done = subprocess.run(command, capture_output=True, timeout=60, env=variables, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    return call


@pytest.fixture
def crane(tmp_path) -> Call:
    return tool("crane", tmp_path / "crane")


@pytest.fixture
def skopeo(tmp_path) -> Call:
    policy = tmp_path / "policy.json"
    policy.write_text('{"default":[{"type":"insecureAcceptAnything"}]}')
    call = tool("skopeo", tmp_path / "skopeo")

    def copy(*argv: str) -> str:
        verb, *rest = argv
        insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        insecure = insecure if verb == "copy" else ["--tls-verify=false"]
        return call("--policy", str(policy), verb, *insecure, *rest)

    return copy


@pytest.fixture
def docker(tmp_path) -> Call:
    path = program("docker")
    command = [path, "version", "--format", "{{.Server.Version}}"]
    if subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0:
        pytest.skip("no Docker daemon answers")
    return tool("docker", tmp_path / "docker")


@pytest.fixture
def target(lab, unique_name) -> str:
    """A repository in the lab's registry that no other test uses."""
    return f"{lab.registry}/{unique_name}/package"


@pytest.fixture
def built(crossdock, tmp_path) -> Path:
    """A package file of ours with an example, beside its sources."""
    files = {"src/crossplane.yaml": META, "src/examples/e.yaml": "kind: Example\n"}
    tree(tmp_path, files)
    crossdock("build", "-f", "src", "-o", "ours.xpkg")
    return tmp_path / "ours.xpkg"


@pytest.fixture
def upon_runtime(crossdock, built, tmp_path) -> list[Path]:
    """Package files of ours upon runtime images for two platforms."""
    paths = []
    for architecture in ("amd64", "arm64"):
        layout = Layout()
        layout.top(layout.image(BINARY, architecture=architecture)).folder(tmp_path / architecture)
        words = ["--embed-runtime-image-tarball", architecture, "-o", f"{architecture}.xpkg"]
        crossdock("build", "-f", str(built.parent / "src"), *words)
        paths.append(tmp_path / f"{architecture}.xpkg")
    return paths


@pytest.fixture
def golden() -> Path:
    if not GOLDEN.is_file():
        pytest.skip(f"needs the golden vectors in {VECTORS}")
    return GOLDEN


def digest_in(output: str) -> str:
    """Return the digest at the end of what ``push`` and ``build`` print."""
    return output.strip()[-len("sha256:") - 64 :]


def content(crossdock: Call, tmp_path: Path, source: str) -> bytes:
    """Return package.yaml as ``extract`` reads it."""
    crossdock("extract", source, "-o", "content.gz")
    return gzip.decompress((tmp_path / "content.gz").read_bytes())


def layer_annotations(manifest: str) -> list[dict[str, str] | None]:
    document: dict[str, Any] = json.loads(manifest)
    return [layer.get("annotations") for layer in document["layers"]]


class TestOurFile:
    def test_read_by_crane(self, crane, built):
        crane("validate", "--tarball", str(built))

    def test_pushed_by_crane_and_read_by_us(self, crossdock, crane, built, target, tmp_path):
        crane("push", str(built), f"{target}:v1")
        crane("validate", "--remote", f"{target}:v1")
        assert content(crossdock, tmp_path, f"{target}:v1") == STREAM

    def test_pushed_by_skopeo_and_read_by_us(self, crossdock, skopeo, built, target, tmp_path):
        skopeo("copy", f"docker-archive:{built}", f"docker://{target}:v1")
        assert content(crossdock, tmp_path, f"{target}:v1") == STREAM

    def test_copied_by_skopeo_to_an_oci_layout_and_read_by_us(
        self, crossdock, skopeo, built, tmp_path
    ):
        skopeo("copy", f"docker-archive:{built}", f"oci:{tmp_path}/layout:v1")
        assert content(crossdock, tmp_path, "layout") == STREAM

    def test_loaded_by_docker(self, docker, built):
        docker("load", "-i", str(built))

    def test_read_by_the_standard_library(self, built):
        with tarfile.open(built) as archive:
            assert archive.getnames()[-1] == "manifest.json"

    def test_upon_a_runtime_image_read_by_crane(self, crane, upon_runtime, target):
        crane("validate", "--tarball", str(upon_runtime[1]))
        crane("push", str(upon_runtime[1]), f"{target}:v1")
        config = json.loads(crane("config", f"{target}:v1"))
        assert (config["os"], config["architecture"]) == ("linux", "arm64")

    def test_without_compression_read_by_crane_and_skopeo(
        self, crossdock, crane, skopeo, upon_runtime, target, tmp_path
    ):
        words = ["--embed-runtime-image-tarball", str(upon_runtime[0]), "-o", "plain.xpkg"]
        crossdock("build", "-f", "src", "--compression", "none", *words)
        crane("validate", "--tarball", str(tmp_path / "plain.xpkg"))
        skopeo("copy", f"docker-archive:{tmp_path}/plain.xpkg", f"docker://{target}:v1")
        assert content(crossdock, tmp_path, f"{target}:v1") == STREAM


class TestReferenceFile:
    def test_read_by_us(self, crossdock, golden, tmp_path):
        assert content(crossdock, tmp_path, str(golden)) == GOLDEN_STREAM.read_bytes()

    def test_pushed_by_us_to_the_registry_and_read_by_crane(self, crossdock, crane, golden, target):
        digest = digest_in(crossdock("push", f"{target}:v1", "-f", str(golden)))
        assert crane("digest", f"{target}:v1").strip() == digest
        crane("validate", "--remote", f"{target}:v1")
        assert layer_annotations(crane("manifest", f"{target}:v1")) == [BASE, EXAMPLES]

    def test_pushed_by_us_with_dockers_types_and_read_by_skopeo(
        self, crossdock, skopeo, golden, target
    ):
        words = ["-f", str(golden), "--media-types", "docker"]
        digest = digest_in(crossdock("push", f"{target}:v1", *words))
        assert json.loads(skopeo("inspect", f"docker://{target}:v1"))["Digest"] == digest

    def test_pushed_by_crane_and_pulled_by_us(self, crossdock, crane, golden, target, tmp_path):
        crane("push", str(golden), f"{target}:v1")
        crossdock("pull", f"{target}:v1", "-o", "pulled.xpkg")
        assert content(crossdock, tmp_path, "pulled.xpkg") == GOLDEN_STREAM.read_bytes()
        # The manifest came along; only the annotations that its labels ask for are new.
        again = digest_in(crossdock("push", f"{target}:v2", "-f", "pulled.xpkg"))
        assert layer_annotations(crane("manifest", f"{target}:v2")) == [BASE, EXAMPLES]
        assert crane("digest", f"{target}:v2").strip() == again
        crane("validate", "--tarball", str(tmp_path / "pulled.xpkg"))


class TestOurImageInARegistry:
    @pytest.fixture
    def pushed(self, crossdock, built, target) -> str:
        return digest_in(crossdock("push", f"{target}:v1", "-f", str(built)))

    def test_served_by_the_registry_and_pulled_by_us(
        self, crossdock, built, pushed, target, tmp_path
    ):
        printed = crossdock("pull", f"{target}:v1").split()
        assert printed == [f"demo-{pushed[7:19]}.xpkg", pushed]
        assert (tmp_path / printed[0]).read_bytes() == built.read_bytes()
        assert crossdock("pull", f"{target}@{pushed}").split() == printed

    def test_read_by_crane(self, crane, pushed, target):
        assert crane("digest", f"{target}:v1").strip() == pushed
        crane("validate", "--remote", f"{target}:v1")

    def test_read_by_skopeo(self, skopeo, pushed, target):
        assert json.loads(skopeo("inspect", f"docker://{target}:v1"))["Digest"] == pushed

    def test_copied_by_crane_keeps_its_annotations(
        self, crossdock, crane, pushed, target, tmp_path
    ):
        crane("copy", f"{target}:v1", f"{target}/copy:v1")
        assert crane("digest", f"{target}/copy:v1").strip() == pushed
        assert content(crossdock, tmp_path, f"{target}/copy:v1") == STREAM

    def test_copied_by_skopeo_keeps_its_annotations(
        self, crossdock, crane, skopeo, pushed, target, tmp_path
    ):
        skopeo("copy", f"docker://{target}:v1", f"docker://{target}/copy:v1")
        assert layer_annotations(crane("manifest", f"{target}/copy:v1")) == [BASE, EXAMPLES]
        assert crane("digest", f"{target}/copy:v1").strip() == pushed
        assert content(crossdock, tmp_path, f"{target}/copy:v1") == STREAM

    def test_saved_by_crane_as_a_layout_and_pushed_by_us_keeps_its_digest(
        self, crossdock, crane, pushed, target, tmp_path
    ):
        crane("pull", "--format=oci", f"{target}:v1", str(tmp_path / "layout"))
        assert digest_in(crossdock("push", f"{target}:v2", "-f", "layout")) == pushed

    def test_saved_by_skopeo_as_an_archive_and_pushed_by_us_keeps_its_digest(
        self, crossdock, skopeo, pushed, target, tmp_path
    ):
        skopeo("copy", f"docker://{target}:v1", f"oci-archive:{tmp_path}/layout.tar")
        assert digest_in(crossdock("push", f"{target}:v2", "-f", "layout.tar")) == pushed

    @pytest.mark.usefixtures("pushed")
    def test_saved_by_crane_as_an_archive_of_docker_and_read_by_us(
        self, crossdock, crane, target, tmp_path
    ):
        crane("pull", f"{target}:v1", str(tmp_path / "image.tar"))
        assert content(crossdock, tmp_path, "image.tar") == STREAM
        with Archive(tmp_path / "image.tar") as archive:  # the labels bring the annotations back
            assert [layer.annotations for layer in archive.layers] == [BASE, EXAMPLES]

    @pytest.mark.usefixtures("pushed")
    def test_its_examples_are_extracted(self, crossdock, target, tmp_path):
        assert crossdock("extract", f"{target}:v1", "-o", "out/").split() == [
            "out/package.yaml",
            "out/examples.yaml",
        ]
        assert (tmp_path / "out" / "examples.yaml").read_text() == "---\nkind: Example\n"


class TestOurIndexInARegistry:
    @pytest.fixture
    def pushed(self, crossdock, upon_runtime, target) -> str:
        files = ",".join(path.name for path in upon_runtime)
        return digest_in(crossdock("push", f"{target}:v1", "-f", files, "-a", "org.example=yes"))

    def test_read_by_crane(self, crane, pushed, target):
        assert crane("digest", f"{target}:v1").strip() == pushed
        crane("validate", "--remote", f"{target}:v1")
        assert json.loads(crane("manifest", f"{target}:v1"))["annotations"] == {
            "org.example": "yes"
        }
        words = ["--platform", "linux/arm64", f"{target}:v1"]
        assert json.loads(crane("config", *words))["architecture"] == "arm64"
        child = json.loads(crane("manifest", *words))
        assert child["annotations"] == {"org.example": "yes"}

    @pytest.mark.usefixtures("pushed")
    def test_read_by_skopeo(self, skopeo, target):
        index = json.loads(skopeo("inspect", "--raw", f"docker://{target}:v1"))
        assert [each["platform"]["architecture"] for each in index["manifests"]] == [
            "amd64",
            "arm64",
        ]

    @pytest.mark.usefixtures("pushed")
    def test_read_by_us(self, crossdock, upon_runtime, target, tmp_path):
        assert content(crossdock, tmp_path, f"{target}:v1") == STREAM
        crossdock("pull", f"{target}:v1", "-o", "pulled.xpkg")
        with Archive(tmp_path / "pulled.xpkg") as pulled, Archive(upon_runtime[0]) as ours:
            assert pulled.platform["architecture"] == "amd64"
            assert pulled.config == ours.config

    def test_saved_by_crane_as_a_layout_and_pushed_by_us(
        self, crossdock, crane, pushed, target, tmp_path
    ):
        crane("pull", "--format=oci", f"{target}:v1", str(tmp_path / "layout"))
        words = ["-f", "layout", "-a", "org.example=yes"]
        assert digest_in(crossdock("push", f"{target}:v2", *words)) == pushed


class TestCranesImage:
    """An image that knows nothing of packages: no annotations, several layers."""

    @pytest.fixture
    def appended(self, crane, target, tmp_path) -> str:
        for name, data in (
            ("low", make_tar(member("package.yaml", b"low"))),
            (
                "middle",
                make_tar(member("./package.yaml", STREAM), member(".up/examples.yaml", b"a: b")),
            ),
            ("top", EMPTY),
        ):
            (tmp_path / name).write_bytes(data)
        words = [word for name in ("low", "middle", "top") for word in ("-f", str(tmp_path / name))]
        crane("append", "--oci-empty-base", *words, "-t", f"{target}:v1")
        return f"{target}:v1"

    def test_read_by_us(self, crossdock, appended, tmp_path):
        crossdock("extract", appended, "-o", "out/")
        assert (tmp_path / "out" / "package.yaml").read_bytes() == STREAM
        assert (tmp_path / "out" / "examples.yaml").read_bytes() == b"a: b"

    def test_pulled_and_pushed_by_us_keeps_its_digest(self, crossdock, crane, appended, target):
        crossdock("pull", appended, "-o", "pulled.xpkg")
        digest = digest_in(crossdock("push", f"{target}:v2", "-f", "pulled.xpkg"))
        assert crane("digest", appended).strip() == digest

    def test_used_by_us_as_a_runtime_image_of_a_registry(
        self, crossdock, built, appended, tmp_path
    ):
        crossdock("build", "-f", "src", "--embed-runtime-image", appended, "-o", "upon.xpkg")
        with Archive(tmp_path / "upon.xpkg") as archive:
            assert len(archive.layers) == 5
        assert content(crossdock, tmp_path, "upon.xpkg") == STREAM


class TestSkopeosImage:
    def test_compressed_with_zstd_and_read_by_us(
        self, crossdock, crane, skopeo, target, tmp_path, unique_name
    ):
        # Content of its own: skopeo remembers blobs, and mounts one of another compression.
        meta = META.replace("demo", unique_name)
        tree(tmp_path, {"src/crossplane.yaml": meta})
        crossdock("build", "-f", "src", "--compression", "none", "-o", "plain.xpkg")
        words = ["--dest-compress-format", "zstd", "--format", "oci"]
        skopeo("copy", *words, f"docker-archive:{tmp_path}/plain.xpkg", f"docker://{target}:v1")
        layers = json.loads(crane("manifest", f"{target}:v1"))["layers"]
        assert {layer["mediaType"][-5:] for layer in layers} == {"+zstd"}
        assert content(crossdock, tmp_path, f"{target}:v1") == f"---\n{meta}---\n".encode()
        crossdock("pull", f"{target}:v1", "-o", "pulled.xpkg")
        assert content(crossdock, tmp_path, "pulled.xpkg") == f"---\n{meta}---\n".encode()

    def test_a_plain_archive_read_by_us(self, crossdock, skopeo, built, tmp_path):
        skopeo("copy", f"docker-archive:{built}", f"docker-archive:{tmp_path}/copy.tar:x:v1")
        assert content(crossdock, tmp_path, "copy.tar") == STREAM
