"""Content: which documents make a package, and the parsed form."""

from __future__ import annotations

import hashlib
import io
import json

import pytest

from controller.model.content import (
    ParsedPackage,
    from_details,
    parse_to_lines,
    read_index,
    to_details,
)
from controller.model.manifest import ManifestError

META = """
apiVersion: meta.pkg.crossplane.io/v1
kind: Provider
metadata:
  name: p
"""
CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {name}
"""
COMPOSITION = """
apiVersion: apiextensions.crossplane.io/v1
kind: Composition
metadata: {name: c}
"""


def parse(*texts):
    lines = io.BytesIO()
    stream = io.BytesIO("---".join(texts).encode())
    package = parse_to_lines(stream, lines, source="package.yaml")
    return package, lines


def fault(*texts):
    with pytest.raises(ManifestError) as caught:
        parse(*texts)
    return str(caught.value)


def test_each_object_is_a_line_of_json_with_its_place_and_hash():
    package, lines = parse(CRD.format(name="a"), META, CRD.format(name="b"))
    data = lines.getvalue()
    assert [entry.name for entry in package.entries] == ["a", "b"]
    for entry in package.entries:
        line = data[entry.offset : entry.offset + entry.length]
        assert data[entry.offset + entry.length :].startswith(b"\n")
        assert json.loads(line)["metadata"]["name"] == entry.name
        assert hashlib.sha256(line).hexdigest() == entry.sha256
    assert [entry.document for entry in package.entries] == [1, 3]
    assert package.meta["metadata"]["name"] == "p"
    assert package.kind == "Provider"


def test_the_last_line_is_the_index():
    package, lines = parse(META, CRD.format(name="a"), COMPOSITION)
    assert read_index(lines) == package


def test_a_large_index_is_read_back():
    package, lines = parse(META, *(CRD.format(name=f"crd-{n}") for n in range(1500)))
    assert read_index(lines) == package
    assert len(package.entries) == 1500


@pytest.mark.parametrize("cut", [1, 10, 10_000])
def test_a_parsed_form_that_is_cut_short_is_refused(cut):
    _, lines = parse(META, CRD.format(name="a"))
    with pytest.raises(ValueError, match=r"cut short|damaged"):
        read_index(io.BytesIO(lines.getvalue()[:-cut]))


def test_details_are_json_and_come_back():
    package, _ = parse(META, CRD.format(name="a"), COMPOSITION)
    assert from_details(json.loads(json.dumps(to_details(package)))) == package


def test_details_of_another_version_are_refused():
    with pytest.raises(ValueError, match="another version"):
        from_details({"crossdockIndex": 0})
    with pytest.raises(ValueError, match="damaged"):
        from_details({})


def test_known_objects_that_do_not_belong_into_the_package_are_dropped():
    package, _ = parse(META, CRD.format(name="a"), COMPOSITION)
    assert [str(entry) for entry in package.entries] == ["CustomResourceDefinition a"]
    assert [str(entry) for entry in package.dropped] == ["Composition c"]
    assert len(package.objects) == 2


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        (kind, version)
        for kind, older in [
            ("Provider", "v1alpha1"),
            ("Configuration", "v1alpha1"),
            ("Function", "v1beta1"),
        ]
        for version in ("v1", older)
    ],
)
def test_all_versions_of_metadata_are_alike(kind, version):
    meta = META.replace("Provider", kind).replace("/v1", f"/{version}")
    assert parse(meta)[0].kind == kind


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n",
            'no kind "ConfigMap" is registered for version "v1" in packages',
        ),
        (
            "apiVersion: meta.pkg.crossplane.io/v2\nkind: Provider\nmetadata: {name: x}\n",
            'no kind "Provider" is registered for version "meta.pkg.crossplane.io/v2"',
        ),
        (
            "apiVersion: apiextensions.k8s.io/v1\nkind: Composition\nmetadata: {name: x}\n",
            'no kind "Composition" is registered',
        ),
        ("kind: Provider\n", "apiVersion is missing"),
        ("apiVersion: v1\n", "kind is missing"),
        ("apiVersion: 1\nkind: Provider\n", "apiVersion is not text"),
        ("apiVersion: v1\nkind: ''\n", "kind is missing"),
        ("apiVersion: v1\nkind: X\nmetadata: []\n", "metadata is not an object"),
        ("apiVersion: v1\nkind: X\nmetadata: {name: 1}\n", "metadata.name is not text; quote it"),
        (CRD.format(name="''"), "CustomResourceDefinition has no metadata.name"),
    ],
)
def test_a_document_that_no_package_may_hold_fails_it(text, cause):
    message = fault(META, "\n" + text.lstrip("\n"))
    assert message.startswith("package.yaml: document 2, line 7: ")
    assert cause in message


def test_lists_of_known_kinds_are_known_and_dropped():
    text = "\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinitionList\nitems: []\n"
    assert [e.kind for e in parse(META, text)[0].dropped] == ["CustomResourceDefinitionList"]


class TestOneMeta:
    def test_successful(self):
        assert parse(CRD.format(name="a"), META)[0].kind == "Provider"

    @pytest.mark.parametrize("text", [CRD.format(name="a"), "# nothing\n"])
    def test_err_no_meta(self, text):
        assert fault(text) == "package.yaml: not exactly one package meta type (found 0)"

    def test_err_multi_meta(self):
        message = fault(META, CRD.format(name="a"), META)
        assert message.endswith(
            "not exactly one package meta type (found 2: document 1, document 3)"
        )


def test_of_two_objects_with_one_name_the_later_one_holds_and_it_is_noted():
    package, lines = parse(META, CRD.format(name="a"), CRD.format(name="a") + "spec: {x: 1}\n")
    (entry,) = package.entries
    line = lines.getvalue()[entry.offset : entry.offset + entry.length]
    assert json.loads(line)["spec"] == {"x": 1}
    assert [str(d) for d in package.duplicates] == [
        "document 3, line 12: CustomResourceDefinition a occurs twice"
    ]


def test_keys_that_occur_twice_are_noted():
    package, _ = parse(META, CRD.format(name="a") + "spec: {x: 1, x: 2}\n")
    assert [d.what for d in package.duplicates] == ['key "x" occurs twice']


def test_a_package_of_metadata_alone_is_a_package():
    assert parse(META)[0] == ParsedPackage(parse(META)[0].meta)
