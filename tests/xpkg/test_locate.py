"""Locating package.yaml: which layers are read, whiteouts, and what is no package."""

from __future__ import annotations

import gzip
import hashlib
import tarfile

import pytest
import zstandard

from controller.xpkg.errors import LimitExceeded, MalformedPackage, PackageNotFound
from controller.xpkg.locate import Found, Search
from tests.xpkg.tars import BASE, Layer, make_tar, member

YAML = b"kind: Provider\n"
PACKAGE = member("package.yaml", YAML)
DIRECTORY = {"type": tarfile.DIRTYPE}


def find(tmp_path, *layers, descriptors=None, **limits):
    """Search an image; layers are archives or lists of members, the lowest first."""
    described = descriptors or [Layer(f"layer {n}") for n in range(len(layers))]
    blobs = dict(zip(described, layers, strict=True)) if not descriptors else None
    search = Search(described, **limits)
    destination = tmp_path / "package.yaml"
    for layer in search.layers:
        content = blobs[layer] if blobs else layers[described.index(layer)]
        blob = tmp_path / "blob"
        blob.write_bytes(content if isinstance(content, bytes) else make_tar(*content))
        found = search.read(layer, blob, destination)
        if found is not None:
            assert found == Found(
                len(destination.read_bytes()),
                hashlib.sha256(destination.read_bytes()).hexdigest(),
            )
            return destination.read_bytes()
        assert not destination.exists()
    raise search.missing()


@pytest.fixture(autouse=True)
def _hashable_layers(monkeypatch):
    monkeypatch.setattr(Layer, "__hash__", lambda layer: hash(layer.name))


def refusal(tmp_path, *layers, error=MalformedPackage, **arguments):
    with pytest.raises(error) as caught:
        find(tmp_path, *layers, **arguments)
    assert not (tmp_path / "package.yaml").exists()
    return str(caught.value)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
def test_the_file_of_a_single_layer(tmp_path, compress):
    assert find(tmp_path, compress(make_tar(PACKAGE))) == YAML


@pytest.mark.parametrize(
    "name", ["package.yaml", "./package.yaml", "/package.yaml", ".//package.yaml"]
)
def test_names_of_the_root(tmp_path, name):
    assert find(tmp_path, [member(name, YAML)]) == YAML


def test_a_large_file_among_others(tmp_path):
    content = b"x" * 1_000_000
    layer = [member("a", b"y" * 5000), member("package.yaml", content), member("z", b"z")]
    assert find(tmp_path, layer) == content


class TestAnnotatedLayer:
    def test_is_read_alone(self, tmp_path):
        layers = ([PACKAGE], [member("package.yaml", b"other")])
        assert find(tmp_path, *layers, descriptors=[BASE, Layer("top")]) == YAML

    def test_the_first_of_several_counts_with_a_warning(self, tmp_path):
        second = Layer("second", annotations=BASE.annotations)
        search = Search([BASE, second])
        assert search.layers == (BASE,)
        assert search.annotated
        assert search.warnings == ("2 layers are annotated as base; the first is used",)

    def test_another_value_does_not_count(self):
        odd = Layer("odd", annotations={"io.crossplane.xpkg": "BASE"})
        assert not Search([odd]).annotated

    def test_without_the_file(self, tmp_path):
        message = refusal(tmp_path, [member("a")], descriptors=[BASE], error=PackageNotFound)
        assert message.startswith("no package.yaml in the layer annotated as base")

    def test_other_layers_may_be_of_any_type(self, tmp_path):
        odd = Layer("odd", media_type="application/json")
        assert find(tmp_path, b"{}", [PACKAGE], descriptors=[odd, BASE]) == YAML

    def test_is_named_in_errors(self, tmp_path):
        assert refusal(tmp_path, b"x", descriptors=[BASE]).startswith("base layer: is not a tar")


class TestLayers:
    def test_the_upper_one_wins(self, tmp_path):
        assert find(tmp_path, [member("package.yaml", b"low")], [PACKAGE]) == YAML

    def test_lower_ones_are_read_when_upper_ones_say_nothing(self, tmp_path):
        upper = [member("a"), member("d/.wh..wh..opq"), member(".wh.other")]
        assert find(tmp_path, [PACKAGE], upper, b"") == YAML

    def test_a_whiteout_hides_the_lower_file(self, tmp_path):
        layers = ([PACKAGE], [member(".wh.package.yaml")], [member("a")])
        message = refusal(tmp_path, *layers, error=PackageNotFound)
        assert message == "layer 2: package.yaml is deleted by this layer"

    def test_an_opaque_root_hides_the_lower_file(self, tmp_path):
        layers = ([PACKAGE], [member(".wh..wh..opq")])
        refusal(tmp_path, *layers, error=PackageNotFound)

    @pytest.mark.parametrize("mark", [".wh.package.yaml", ".wh..wh..opq"])
    @pytest.mark.parametrize("turn", [1, -1])
    def test_a_whiteout_leaves_the_file_of_its_own_layer(self, tmp_path, mark, turn):
        layer = [member(mark), PACKAGE][::turn]
        assert find(tmp_path, [member("package.yaml", b"low")], layer) == YAML

    def test_a_whiteout_without_a_name_is_refused(self, tmp_path):
        assert "deletion mark without a name" in refusal(tmp_path, [PACKAGE], [member(".wh.")])

    @pytest.mark.parametrize("name", [".wh..wh.plnk", ".wh..wh.aufs"])
    def test_marks_of_an_old_file_system_say_nothing(self, tmp_path, name):
        assert find(tmp_path, [PACKAGE], [member(name, **DIRECTORY)]) == YAML

    def test_of_an_unknown_type_are_refused_before_they_are_fetched(self):
        with pytest.raises(MalformedPackage, match=r"helm.*is no image layer"):
            Search([Layer(media_type="application/vnd.cncf.helm.chart.content.v1.tar+gzip")])

    @pytest.mark.parametrize(
        "media_type",
        [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ],
    )
    def test_of_all_known_types_are_read(self, media_type):
        assert Search([Layer(media_type=media_type)]).layers


class TestNoPackage:
    def test_an_entirely_empty_image(self, tmp_path):
        message = refusal(tmp_path, error=PackageNotFound)
        assert message.startswith("no package.yaml: the image is entirely empty, it has no layers")

    @pytest.mark.parametrize(
        "layer", [b"", bytes(1024), gzip.compress(b"", mtime=0), make_tar()], ids=len
    )
    def test_an_empty_layer(self, tmp_path, layer):
        message = refusal(tmp_path, layer, error=PackageNotFound)
        assert message.startswith("no package.yaml in the image's root directory")

    def test_nested_files_do_not_count_and_are_named(self, tmp_path):
        lower = [member("usr/share/package.yaml", YAML), member("PACKAGE.YAML", YAML)]
        upper = [member(f"{n}/package.yaml", YAML) for n in range(4)]
        message = refusal(tmp_path, lower, upper, error=PackageNotFound)
        named = "0/package.yaml, 1/package.yaml, 2/package.yaml, 3/package.yaml, "
        assert (
            f"found elsewhere, where it does not count: {named}usr/share/package.yaml;" in message
        )

    def test_a_nested_file_above_the_root_one_changes_nothing(self, tmp_path):
        assert find(tmp_path, [PACKAGE], [member("a/package.yaml", b"other")]) == YAML


class TestMalformed:
    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            (tarfile.DIRTYPE, "directory"),
            (tarfile.SYMTYPE, "symbolic link"),
            (tarfile.LNKTYPE, "hard link"),
            (tarfile.FIFOTYPE, "fifo"),
            (tarfile.CHRTYPE, "character device"),
            (tarfile.BLKTYPE, "block device"),
        ],
    )
    def test_a_file_that_is_none(self, tmp_path, kind, name):
        entry = member("package.yaml", type=kind, linkname="/etc/shadow")
        message = refusal(tmp_path, [PACKAGE], [entry])
        cause = f"package.yaml is a {name}, must be a regular file"
        assert message == f"layer 2: {cause}; build the package again"

    def test_two_files_that_differ(self, tmp_path):
        message = refusal(tmp_path, [PACKAGE, member("./package.yaml", b"other")])
        cause = "package.yaml occurs twice with different content"
        assert message == f"layer 1: {cause}; build the package again"

    def test_two_files_that_are_equal_are_one(self, tmp_path):
        assert find(tmp_path, [PACKAGE, member("./package.yaml", YAML)]) == YAML

    def test_an_empty_file(self, tmp_path):
        message = refusal(tmp_path, [member("package.yaml")])
        assert message == "layer 1: package.yaml is empty; build the package again"

    @pytest.mark.parametrize("name", ["../package.yaml", "a/../package.yaml"])
    def test_an_unsafe_name(self, tmp_path, name):
        assert "unsafe name" in refusal(tmp_path, [PACKAGE, member(name, YAML)])

    def test_damage_behind_the_file(self, tmp_path):
        data = make_tar(PACKAGE, member("a", b"x" * 600))
        assert "cut short" in refusal(tmp_path, data[:2600])

    def test_a_file_beyond_its_limit(self, tmp_path):
        message = refusal(tmp_path, [member("package.yaml", b"x" * 11)], package_limit=10)
        cause = "package.yaml has 11 bytes, more than the 10 that are read"
        assert message == f"layer 1: {cause}; make the package smaller, or split it"

    def test_an_image_beyond_its_limit(self, tmp_path):
        layers = ([PACKAGE], [member("a", b"x" * 20_000)], [member("b", b"x" * 20_000)])
        find(tmp_path, *layers, image_limit=100_000)
        (tmp_path / "package.yaml").unlink()
        message = refusal(tmp_path, *layers, image_limit=40_000, error=LimitExceeded)
        assert message.startswith("layer 2: is larger than 40000 bytes, uncompressed")
