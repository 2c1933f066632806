import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.registry.failures import (
    LimitExceeded,
    MalformedManifest,
    RegistryError,
    RegistryUnavailable,
    UnsupportedMedia,
)
from controller.registry.media import (
    ACCEPT,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    decode_manifest,
    digest_of,
    load_json,
    select,
)

SHA = f"sha256:{'a' * 64}"
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": SHA, "size": 2}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": SHA, "size": 7}
IMAGE = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}
INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


def decode(document, content_type=OCI_MANIFEST):
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return decode_manifest(raw, content_type=content_type, digest=digest_of(raw))


def test_an_image_manifest_is_decoded():
    base = LAYER | {"annotations": {"io.crossplane.xpkg": "base"}}
    found = decode(IMAGE | {"layers": [LAYER, base], "annotations": {"a": "b"}, "unknown": 1})
    assert isinstance(found, Manifest)
    assert found.descriptor.media_type == OCI_MANIFEST
    assert found.descriptor.size == len(found.raw)
    assert found.descriptor.digest == digest_of(found.raw)
    assert found.base_layers == (found.layers[1],)
    assert found.config.size == 2
    assert found.annotations == {"a": "b"}


def test_an_image_without_layers_is_an_image():
    found = decode(IMAGE | {"layers": []})
    assert isinstance(found, Manifest)
    assert found.layers == ()


def test_docker_manifests_are_images_too():
    config = CONFIG | {"mediaType": "application/vnd.docker.container.image.v1+json"}
    found = decode(IMAGE | {"mediaType": DOCKER_MANIFEST, "config": config}, DOCKER_MANIFEST)
    assert isinstance(found, Manifest)


@pytest.mark.parametrize(
    "content_type",
    ["", "application/octet-stream", "text/plain; charset=utf-8", "application/json"],
)
def test_a_vague_content_type_leaves_it_to_the_body(content_type):
    assert isinstance(decode(IMAGE, content_type), Manifest)
    untyped = {key: value for key, value in IMAGE.items() if key != "mediaType"}
    assert isinstance(decode(untyped, content_type), Manifest)
    assert isinstance(decode(INDEX, content_type), Index)


@pytest.mark.parametrize(
    ("document", "content_type", "kind", "message"),
    [
        (IMAGE, OCI_INDEX, MalformedManifest, "calls itself"),
        (INDEX, OCI_MANIFEST, MalformedManifest, "calls itself"),
        (IMAGE | {"manifests": []}, OCI_MANIFEST, MalformedManifest, "image and index at once"),
        (IMAGE | {"fsLayers": []}, OCI_MANIFEST, MalformedManifest, "image and index at once"),
        ({"schemaVersion": 2, "manifests": []}, OCI_MANIFEST, MalformedManifest, "fields of"),
        (IMAGE | {"schemaVersion": 1}, OCI_MANIFEST, UnsupportedMedia, "schema 1"),
        (IMAGE | {"schemaVersion": True}, OCI_MANIFEST, UnsupportedMedia, "schema 1"),
        (IMAGE | {"schemaVersion": "2"}, OCI_MANIFEST, MalformedManifest, "schemaVersion"),
        (IMAGE | {"schemaVersion": 3}, OCI_MANIFEST, MalformedManifest, "schemaVersion"),
        ({"schemaVersion": 1, "fsLayers": []},
         "application/vnd.docker.distribution.manifest.v1+prettyjws", UnsupportedMedia, "rebuild"),
        (IMAGE | {"mediaType": "application/vnd.x"}, "", UnsupportedMedia, "application/vnd.x"),
        (IMAGE | {"mediaType": 7}, "", MalformedManifest, "mediaType"),
        ({}, "", UnsupportedMedia, "no type at all"),
        ([], OCI_MANIFEST, MalformedManifest, "no JSON object"),
        (b"{", OCI_MANIFEST, MalformedManifest, "not valid JSON"),
        (b'{"a":1,"a":2}', OCI_MANIFEST, MalformedManifest, '"a" occurs twice'),
        (b'{"a":1.5}', OCI_MANIFEST, MalformedManifest, "1.5 is no integer"),
        (b'{"a":NaN}', OCI_MANIFEST, MalformedManifest, "no integer"),
        (b'{"a":1e400}', OCI_MANIFEST, MalformedManifest, "no integer"),
        (b"\xff\xfe", OCI_MANIFEST, MalformedManifest, "not valid JSON"),
        (b"\xef\xbb\xbf{}", OCI_MANIFEST, MalformedManifest, "not valid JSON"),
        (b"[" * 100_000, OCI_MANIFEST, MalformedManifest, "too deeply nested"),
        (b'{"x":' + b"[" * 40 + b"]" * 40 + b"}", OCI_MANIFEST, MalformedManifest, "32 levels"),
        (b"<html>login</html>", "text/html", RegistryUnavailable, "login page"),
        (b" <!doctype html>", OCI_MANIFEST, RegistryUnavailable, "web page"),
        (IMAGE | {"layers": [LAYER] * 128}, OCI_MANIFEST, LimitExceeded, "128 layers; at most 127"),
        (IMAGE | {"layers": None}, OCI_MANIFEST, MalformedManifest, "layers is no list"),
        (IMAGE | {"config": None}, OCI_MANIFEST, MalformedManifest, "config is no descriptor"),
        (INDEX | {"manifests": [LAYER] * 1025}, OCI_INDEX, LimitExceeded, "1025 manifests"),
    ],
)  # fmt: skip
def test_what_breaks_the_format_is_refused(document, content_type, kind, message):
    with pytest.raises(kind, match=message):
        decode(document, content_type)


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": 1.5},
        {"size": True},
        {"size": "7"},
        {"size": 2**63},
        {"size": None},
        {"digest": "sha256:../../etc/passwd"},
        {"digest": "md5:abc"},
        {"digest": f"sha256:{'A' * 64}"},
        {"digest": 5},
        {"mediaType": ""},
        {"mediaType": "x" * 256},
        {"annotations": {"a": 1}},
        {"annotations": []},
        {"annotations": "text"},
    ],
)
def test_a_bad_descriptor_is_refused_before_anything_is_fetched(change):
    layer = {**LAYER, **change}
    if change == {"annotations": []}:
        decode(IMAGE | {"layers": [layer]})  # empty is empty
        return
    with pytest.raises(MalformedManifest):
        decode(IMAGE | {"layers": [layer]})


@pytest.mark.parametrize("platform", ["linux", {"os": 1}, []])
def test_a_bad_platform_is_refused(platform):
    entry = {"mediaType": OCI_MANIFEST, "digest": SHA, "size": 1, "platform": platform}
    with pytest.raises(MalformedManifest):
        decode(INDEX | {"manifests": [entry]}, OCI_INDEX)


def test_an_artifact_is_no_package_unless_a_layer_says_so():
    helm = CONFIG | {"mediaType": "application/vnd.cncf.helm.config.v1+json"}
    with pytest.raises(UnsupportedMedia, match=r"not a Crossplane package: .*helm"):
        decode(IMAGE | {"config": helm})
    base = LAYER | {"annotations": {"io.crossplane.xpkg": "base"}}
    assert isinstance(decode(IMAGE | {"config": helm, "layers": [base]}), Manifest)


def entry(platform="", kind=OCI_MANIFEST, digest="b", **annotations):
    return Descriptor(kind, f"sha256:{digest * 64}", 1, annotations, platform)


ATTESTATION = Descriptor(
    OCI_MANIFEST, SHA, 1, {"vnd.docker.reference.type": "attestation-manifest"}, "linux/amd64"
)


@pytest.mark.parametrize(
    ("entries", "chosen", "warned"),
    [
        ([entry("linux/arm64")], 0, False),
        ([entry("unknown/unknown"), entry("linux/arm64")], 1, False),
        ([ATTESTATION, entry("linux/arm64")], 1, False),
        ([entry("linux/arm64"), entry("linux/amd64")], 1, False),
        ([entry("linux/arm64"), entry("linux/amd64/v2")], 1, False),
        ([entry(), entry("linux/amd64")], 1, False),
        ([entry("linux/arm64"), entry()], 1, False),
        ([entry("linux/arm64"), entry("windows/amd64")], 0, True),
        ([entry("linux/amd64"), entry("linux/amd64", digest="c")], 0, False),
        ([entry(kind="application/vnd.x"), entry("linux/s390x")], 1, False),
        ([entry(kind=DOCKER_LIST), entry("windows/amd64")], 0, False),
    ],
)
def test_the_package_of_an_index_is_chosen(entries, chosen, warned):
    found, warning = select(Index(tuple(entries)))
    assert found is entries[chosen]
    assert (warning is not None) is warned


@pytest.mark.parametrize("entries", [(), (ATTESTATION,), (entry("unknown/unknown"),)])
def test_an_index_without_images_has_no_package(entries):
    with pytest.raises(MalformedManifest, match="no image manifest"):
        select(Index(tuple(entries)))


def test_the_warning_names_the_platform():
    _, warning = select(Index((entry("linux/arm64"), entry("linux/s390x"))))
    assert warning == "package index has no linux/amd64 manifest, using linux/arm64"


def test_head_and_get_accept_the_same_types():
    assert ACCEPT.split(", ") == [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST]


def test_digests_follow_the_algorithm_asked_for():
    assert digest_of(b"") == (
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert digest_of(b"", like="sha512:x").startswith("sha512:cf83e1357eefb8bd")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=12,
)
fields = st.sampled_from(
    ["schemaVersion", "mediaType", "manifests", "layers", "config", "fsLayers"]
)


@given(
    st.dictionaries(fields, json_values, max_size=6), st.sampled_from([OCI_MANIFEST, OCI_INDEX, ""])
)
def test_any_document_is_decoded_or_refused(changes, content_type):
    try:
        found = decode({"schemaVersion": 2, **changes}, content_type)
    except RegistryError as refusal:
        said = str(refusal)
    else:
        assert isinstance(found, Manifest | Index)
        said = ""
    assert said.isprintable()


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(raw):
    said = ""
    try:
        load_json(raw, "text")
    except MalformedManifest as refusal:
        said = str(refusal)
    assert said.isprintable()
