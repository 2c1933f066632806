"""Build: what becomes a package, what is refused and how it is said, and equal bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from controller.model.objects import friendly_id
from controller.xpkg.archive import Archive, find_xpkg
from controller.xpkg.build import Built, build
from controller.xpkg.errors import BuildError
from controller.xpkg.locate import Search
from tests.xpkg.tars import tree

REPOSITORY = Path(__file__).parents[2]
PACKAGES = REPOSITORY.parent / "shared" / "packages"
META = """apiVersion: meta.pkg.crossplane.io/v1
kind: {kind}
metadata:
  name: {name}
"""
PROVIDER = META.format(kind="Provider", name="demo")
CRD = """apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {name}
"""
COMPOSITION = """apiVersion: apiextensions.crossplane.io/v1
kind: Composition
metadata:
  name: c
"""


def stream_of(path, tmp_path):
    """Return the bytes of package.yaml in a package file."""
    with Archive(path) as archive:
        search = Search(archive.layers)
        (layer,) = search.layers
        archive.extract(layer, tmp_path / "blob")
    assert search.read(layer, tmp_path / "blob", tmp_path / "stream") is not None
    return (tmp_path / "stream").read_bytes()


def faults(root, **arguments):
    with pytest.raises(BuildError) as caught:
        build(root, **arguments)
    assert not list(root.rglob("*.xpkg*"))
    assert str(caught.value) == "\n".join(caught.value.faults)
    return list(caught.value.faults)


@pytest.fixture
def root(tmp_path):
    return tree(tmp_path / "root", {"crossplane.yaml": PROVIDER})


class TestFriendlyID:
    LONG = "provider-aws-plusabunchofothernonsensethatisgoingtogetslicedoff"

    @pytest.mark.parametrize(
        ("name", "digest", "expected"),
        [
            ("provider-aws", "1234567", "provider-aws-1234567"),
            (LONG, "1234567", "provider-aws-plusabunchofothernonsensethatisgoingt-1234567"),
            ("provider-aws", "1234567891234567", "provider-aws-123456789123"),
            (
                LONG,
                "1234567891234567",
                "provider-aws-plusabunchofothernonsensethatisgoingt-123456789123",
            ),
        ],
        ids=["both under limit", "package over limit", "hash over limit", "both over limit"],
    )
    def test_friendly_id(self, name, digest, expected):
        assert friendly_id(name, digest) == expected


class TestBuild:
    def test_successful_with_name(self, tmp_path):
        tree(tmp_path, {"any.yaml": PROVIDER})
        built = build(tmp_path, name="given")
        assert find_xpkg(tmp_path) == built.path
        assert built.path.name == f"given-{built.digest[7:19]}.xpkg"

    def test_err_no_name_no_meta(self, tmp_path):
        (fault,) = faults(tmp_path)
        assert fault == (
            f"failed to get name from crossplane.yaml: open {tmp_path}/crossplane.yaml: "
            "no such file or directory"
        )

    def test_success(self, root):
        built = build(root)
        nothing = "the package holds no objects: nothing will be installed"
        assert built == Built(built.path, built.digest, "demo", (nothing,))
        assert built.path == root / f"demo-{built.digest[7:19]}.xpkg"

    def test_err_init_backend(self, tmp_path):
        assert faults(tmp_path / "gone") == [
            f"cannot read {tmp_path}/gone: No such file or directory"
        ]

    def test_err_parse(self, root):
        tree(root, {"a/b.yaml": CRD.format(name="a") + "---\na: [\n"})
        (fault,) = faults(root)
        assert fault.startswith("a/b.yaml: document 2, line 7: ")

    def test_err_lint(self, root):
        tree(root, {"c.yaml": "---\n" + COMPOSITION})
        (fault,) = faults(root)
        assert fault.startswith(
            "failed to lint package: c.yaml: document 1, line 2: Composition does not belong into "
            "a Provider package: object did not pass any of the linters with following errors: "
        )


class TestContent:
    def test_metadata_first_then_objects_in_the_order_of_paths(self, root, tmp_path):
        tree(root, {"z.yml": CRD.format(name="z"), "a/b.yaml": CRD.format(name="b")})
        stream = f"---\n{PROVIDER}---\n{CRD.format(name='b')}---\n{CRD.format(name='z')}---\n"
        assert stream_of(build(root).path, tmp_path) == stream.encode()

    def test_documents_stay_as_they_are_but_for_line_ends(self, root, tmp_path):
        text = "# licence\r\n---\r\n# about\r\n" + CRD.format(name="a").replace("\n", "\r\n")
        (root / "a.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"spec: {x: yes} # why")
        written = f"# about\n{CRD.format(name='a')}spec: {{x: yes}} # why\n---\n".encode()
        assert stream_of(build(root).path, tmp_path).endswith(b"---\n" + written)

    def test_files_and_documents_without_content_are_passed_over(self, root, tmp_path):
        tree(root, {"a.yaml": "# nothing\n---\n\n---\n", "b.yaml": "", "c.yml": "---\n---"})
        assert stream_of(build(root).path, tmp_path) == f"---\n{PROVIDER}---\n".encode()

    def test_a_file_cannot_run_into_the_next(self, root, tmp_path):
        for size in (4094, 4095, 4096, 4097):
            tree(root, {"a.yaml": CRD.format(name="a") + "# ".ljust(size, "x")})
            tree(root, {"b.yaml": CRD.format(name="b")})
            assert b"x\n---\napiVersion" in stream_of(build(root).path, tmp_path)

    def test_the_metadata_may_lie_in_any_file(self, tmp_path):
        tree(tmp_path, {"x/meta.yaml": CRD.format(name="a") + "---\n" + PROVIDER})
        assert build(tmp_path).name == "demo"

    def test_ignored_files_are_left_out(self, root, tmp_path):
        tree(root, {"a/x.yaml": "[", "b.yaml": "["})
        built = build(root, ignore=["a", "b.yaml"])
        assert stream_of(built.path, tmp_path) == f"---\n{PROVIDER}---\n".encode()

    def test_examples_become_a_layer_of_their_own(self, root, tmp_path):
        tree(root, {"examples/b.yaml": "kind: B\n", "examples/a/a.yml": "---\nkind: A\n"})
        with Archive(build(root).path) as archive:
            base, examples = archive.layers
            assert base.annotations == {"io.crossplane.xpkg": "base"}
            assert examples.annotations == {"io.crossplane.xpkg": "upbound"}
            archive.extract(examples, tmp_path / "blob")
        with tarfile.open(tmp_path / "blob") as layer:
            content = layer.extractfile(".up/examples.yaml")
            assert content is not None
            assert content.read() == b"---\nkind: A\n---\nkind: B\n"

    @pytest.mark.parametrize("files", [{}, {"examples/.gitkeep": ""}, {"examples/a.yaml": "# x\n"}])
    def test_without_examples_there_is_one_layer(self, root, files):
        with Archive(build(tree(root, files)).path) as archive:
            assert len(archive.layers) == 1

    def test_ignored_examples_are_left_out(self, root):
        tree(root, {"examples/a.yaml": "["})
        with Archive(build(root, ignore=["examples"]).path) as archive:
            assert len(archive.layers) == 1

    def test_examples_that_cannot_be_read_are_refused(self, root):
        tree(root, {"examples/a.yaml": "a: ["})
        (fault,) = faults(root)
        assert fault.startswith("failed to parse examples: examples/a.yaml: document 1, line 2: ")


class TestKinds:
    @pytest.mark.parametrize("kind", ["Provider", "Configuration", "Function"])
    def test_the_kind_that_was_asked_for(self, tmp_path, kind):
        tree(tmp_path, {"crossplane.yaml": META.format(kind=kind, name="x")})
        with Archive(build(tmp_path, kind=kind).path) as archive:
            assert archive.meta()["kind"] == kind

    def test_another_kind_fails(self, root):
        assert faults(root, kind="Configuration") == [
            "failed to lint package: crossplane.yaml: package meta type is not Configuration"
        ]

    def test_two_metadata_objects(self, root):
        tree(root, {"a.yaml": PROVIDER})
        (fault,) = faults(root)
        found = "a.yaml document 1, crossplane.yaml document 1"
        assert fault == f"failed to lint package: not exactly one package meta type: {found}"

    def test_no_metadata_object_in_crossplane_yaml(self, tmp_path):
        tree(tmp_path, {"crossplane.yaml": CRD.format(name="a")})
        (fault,) = faults(tmp_path)
        assert fault == (
            "failed to lint package: not exactly one package meta type: crossplane.yaml describes "
            "no Provider, Configuration or Function"
        )

    def test_a_functions_input_types_are_kept(self, tmp_path):
        files = {"crossplane.yaml": META.format(kind="Function", name="f")}
        built = build(tree(tmp_path, files | {"input.yaml": CRD.format(name="in")}))
        assert (built.name, built.warnings) == ("f", ())

    def test_an_unknown_kind_fails(self, root):
        tree(root, {"a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n"})
        (fault,) = faults(root)
        cause = 'no kind "ConfigMap" is registered for version "v1" in packages'
        assert fault == f"a.yaml: document 1, line 1: {cause}"


class TestFaults:
    def test_all_of_them_are_told_at_once(self, root):
        tree(
            root,
            {
                "crossplane.yaml": PROVIDER + "spec: {crossplane: {version: x.y}}\n",
                "a.yaml": "a: [",
                "b.yaml": CRD.format(name="b") + "kind: CustomResourceDefinition\n",
                "c.yaml": CRD.format(name="b"),
                "d.yaml": COMPOSITION,
            },
        )
        told = faults(root)
        assert [fault.partition(":")[0] for fault in told] == [
            "a.yaml",
            "b.yaml",
            "c.yaml",
            "failed to lint package",
            "failed to lint package",
        ]
        assert told[1] == 'b.yaml: document 1, line 5: key "kind" occurs twice'
        expected = "CustomResourceDefinition b is already in b.yaml: document 1, line 1"
        assert told[2] == f"c.yaml: document 1, line 1: {expected}"
        assert "package version constraints are poorly formatted" in told[3]

    def test_metadata_with_fields_of_a_wrong_type(self, root):
        tree(root, {"crossplane.yaml": PROVIDER + "spec: {dependsOn: {a: b}}\n"})
        prefix = "failed to lint package: crossplane.yaml: "
        assert faults(root) == [prefix + "spec.dependsOn is not a list"]

    def test_a_dependency_that_no_version_can_meet(self, root):
        dependency = "spec: {dependsOn: [{package: a/b, version: x.y}]}\n"
        tree(root, {"crossplane.yaml": PROVIDER + dependency})
        (fault,) = faults(root)
        assert "dependency a/b: version is poorly formatted" in fault

    def test_an_unreadable_file_is_named(self, root):
        (root / "gone.yaml").symlink_to("nothing")
        assert faults(root) == ["gone.yaml: cannot read it: No such file or directory"]

    @pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "a b", "-a", "a-", "a..b", "x" * 254])
    def test_a_name_that_is_none(self, root, name):
        (fault,) = faults(root, name=name)
        assert fault.startswith(f'--name "{name}" is no name for a package')

    @pytest.mark.parametrize("name", ["''", "null"])
    def test_a_package_without_a_name(self, tmp_path, name):
        tree(tmp_path, {"crossplane.yaml": META.format(kind="Provider", name=name)})
        (fault,) = faults(tmp_path)
        assert fault.startswith("the package has no name: set metadata.name")
        assert build(tmp_path, name="given").name == "given"

    def test_a_package_with_a_name_that_is_none(self, tmp_path):
        tree(tmp_path, {"crossplane.yaml": META.format(kind="Provider", name="../x")})
        (fault,) = faults(tmp_path)
        assert fault.startswith('metadata.name "../x" is no name for a package')

    def test_a_folder_for_temporary_files_that_is_gone(self, root, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        (fault,) = faults(root)
        assert fault.startswith(f"cannot work in {tmp_path}/gone (set TMPDIR")

    def test_a_folder_that_cannot_be_written(self, root):
        (fault,) = faults(root, output=root / "gone/x.xpkg")
        assert fault.startswith(f"failed to create package file: {root}/gone/x.xpkg: No such file")


class TestOutput:
    def test_dots_in_names_stay(self, root):
        assert build(root, name="my.pkg").path.name.startswith("my.pkg-")

    def test_long_names_are_cut_where_a_name_may_end(self, root):
        assert build(root, name="a" * 49 + "-b" * 3).path.name.startswith("a" * 49 + "-")
        assert "--" not in build(root, name="a" * 49 + "-b" * 3).path.name

    def test_the_file_that_was_asked_for(self, root, tmp_path):
        assert build(root, output=tmp_path / "o").path == tmp_path / "o"
        assert (tmp_path / "o").is_file()

    def test_an_existing_file_is_replaced_and_nothing_else_is_left(self, root):
        build(root)
        built = build(root)
        assert sorted(root.iterdir()) == sorted([root / "crossplane.yaml", built.path])

    def test_the_file_has_the_rights_that_the_umask_leaves(self, root):
        umask = os.umask(0o022)
        os.umask(umask)
        assert build(root).path.stat().st_mode & 0o777 == 0o666 & ~umask

    def test_the_digest_is_the_one_of_the_pushed_manifest(self, root):
        built = build(root)
        with Archive(built.path) as archive:
            assert archive.manifest().digest == built.digest

    def test_other_content_gives_another_digest(self, root):
        first = build(root)
        tree(root, {"a.yaml": CRD.format(name="a")})
        assert build(root).digest != first.digest

    def test_equal_sources_give_equal_bytes_whatever_the_surroundings(self, tmp_path):
        program = (
            "import os, pathlib, sys; os.umask(int(sys.argv[3], 8));"
            " from controller.xpkg.build import build;"
            " print(build(pathlib.Path(sys.argv[1]), output=pathlib.Path(sys.argv[2])).digest)"
        )
        digests, files = set(), set()
        for number, (zone, locale, umask) in enumerate(
            [("UTC", "C", "022"), ("Asia/Kathmandu", "tr_TR.UTF-8", "077")]
        ):
            names = ["b/é.yaml", "a.yaml", "b/c.yaml", "Z.yaml", "examples/x.yaml"]
            order = names[:: 1 if number else -1]
            texts = {name: CRD.format(name=f"n{names.index(name)}") for name in order}
            root = tree(tmp_path / f"root{number}", texts | {"crossplane.yaml": PROVIDER})
            (tmp_path / f"cwd{number}").mkdir()
            output = tmp_path / f"{number}.xpkg"
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    program,
                    os.path.relpath(root, tmp_path / "cwd0"),
                    output,
                    umask,
                ],
                cwd=tmp_path / f"cwd{number}",
                env={
                    "TZ": zone,
                    "LC_ALL": locale,
                    "PYTHONHASHSEED": str(number),
                    "PYTHONPATH": str(REPOSITORY),
                },
                capture_output=True,
                check=True,
                timeout=60,
            )
            digests.add(done.stdout)
            files.add(output.read_bytes())
        assert len(digests) == len(files) == 1


@pytest.mark.parametrize(
    ("folder", "kind", "ignore", "objects"),
    [
        ("provider-nop/package", "Provider", [], 2),
        ("provider-nop", "Provider", [], 2),
        ("provider-kubernetes/package", "Provider", [], 9),
        ("function-patch-and-transform/package", "Function", [], 1),
    ],
)
def test_real_packages_are_built(tmp_path, folder, kind, ignore, objects):
    if not PACKAGES.is_dir():
        pytest.skip(f"needs real packages in {PACKAGES}")
    root = PACKAGES / folder
    built = build(root, kind=kind, ignore=ignore, output=tmp_path / "p.xpkg")
    with Archive(built.path) as archive:
        assert archive.meta()["metadata"]["name"] == built.name
    stream = stream_of(built.path, tmp_path)
    assert stream.count(b"\nkind: ") == objects + 1
