"""Manifests: what YAML means, where documents begin and end, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.model import manifest
from controller.model.manifest import ManifestError, iter_documents, shown

PACKAGES = Path(__file__).parents[3] / "shared" / "packages"


def documents(text, source="x.yaml"):
    data = text if isinstance(text, bytes) else text.encode()
    return list(iter_documents(io.BytesIO(data), source=source))


def values(text):
    return [document.value for document in documents(text)]


def fault(text):
    with pytest.raises(ManifestError) as caught:
        documents(text)
    return caught.value


class TestDocuments:
    @pytest.mark.parametrize(
        "text",
        [
            "a: 1\n---\nb: 2\n",
            "---\na: 1\n---\nb: 2",
            "--- \na: 1\n---\t\nb: 2\n---\n",
            "a: 1\r\n---\r\nb: 2\r\n",
            "# first\n---\n# only a comment\n\n---\na: 1\n---\n\n---\nb: 2\n---\n# end",
            "a: 1\n...\n---\nb: 2\n...\n",
            "a: 1\n--- # a comment\nb: 2\n",
            "\ufeffa: 1\n---\n\ufeffb: 2\n",
            "---\n---\na: 1\n---\n---\nb: 2\n---",
        ],
    )
    def test_lines_of_dashes_separate_documents(self, text):
        assert values(text) == [{"a": 1}, {"b": 2}]

    @pytest.mark.parametrize(
        "text", ["", "\n", "---", "---\n", "# x", "# x\n---\n...\n", " \t\r\n---\n#", "\ufeff"]
    )
    def test_documents_without_content_are_passed_over(self, text):
        assert documents(text) == []

    def test_dashes_inside_a_block_scalar_separate_nothing(self):
        assert values("a: |\n  x\n  ---\n  y\n") == [{"a": "x\n---\ny\n"}]

    def test_dashes_with_more_behind_them_separate_nothing(self):
        assert values("a: x\n  ---y\n") == [{"a": "x ---y"}]

    @pytest.mark.parametrize("text", ["a: 1\n--- {b: 2}\n", "a: 1\n...\nb: 2\n"])
    def test_a_second_document_without_a_line_of_its_own_is_refused(self, text):
        error = fault(text)
        assert "put a line with --- alone before it" in error.cause
        assert (error.document, error.line) == (1, 2 if "---" in text else 3)

    def test_documents_are_numbered_by_content_and_lines_by_the_stream(self):
        found = documents("# c\n---\na: 1\n---\n---\nb:\n- 2\n")
        assert [(d.number, d.line) for d in found] == [(1, 3), (2, 6)]
        assert [d.text for d in found] == [b"a: 1\n", b"b:\n- 2\n"]

    @pytest.mark.parametrize("size", [manifest._BLOCK_BYTES + shift for shift in range(-4, 5)])
    def test_separators_are_found_across_the_blocks_of_a_stream(self, size):
        first = b"a: " + b"x" * (size - 4) + b"\n"
        assert len(values(first + b"---\nb: 2\n---\nc: 3\n")) == 3

    @given(st.lists(st.integers(0, 10**6), max_size=8), st.integers(1, 7))
    def test_any_number_of_documents_comes_back_from_any_blocks(self, numbers, block):
        class Slow(io.BytesIO):
            def read(self, size=-1, /):
                return super().read(min(size, block))

        text = "---\n".join(f"a: {number}\n" for number in numbers)
        found = [d.value for d in iter_documents(Slow(text.encode()), source="x")]
        assert found == [{"a": number} for number in numbers]


class TestValues:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("k: yes", {"k": True}),
            ("k: 'yes'", {"k": "yes"}),
            ('k: "12"', {"k": "12"}),
            ("k: 0777", {"k": 511}),
            ("k: 2020-01-01", {"k": "2020-01-01"}),
            ("k: 12:30:45", {"k": "12:30:45"}),
            ("k: !!str 12", {"k": "12"}),
            ("k: !!str", {"k": ""}),
            ("k: !!map {}\nl: !!seq []", {"k": {}, "l": []}),
            ("k: a\tb", {"k": "a\tb"}),
            ("k:\tb", {"k": "b"}),
            ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
            ("a: >-\n  x\n  y\n", {"a": "x y"}),
            ("a: |+\n  x\n\n", {"a": "x\n\n"}),
            ('a: "\\x01"', {"a": "\x01"}),
            ("a: {b, c: 1, d: }", {"a": {"b": None, "c": 1, "d": None}}),
            ("a: [1, 2,]", {"a": [1, 2]}),
            ('{"a":1,"b":[true,null,1.50]}', {"a": 1, "b": [True, None, 1.5]}),
            ("? a\n: b", {"a": "b"}),
            ("=: 1", {"=": 1}),
        ],
    )
    def test_values_are_those_of_kubernetes(self, text, value):
        assert values(text) == [value]

    @pytest.mark.parametrize(
        ("text", "key"),
        [("1: a", "1"), ("yes: a", "true"), ("1.5: a", "1.5"), ("0x10: a", "16"), ("'1': a", "1")],
    )
    def test_keys_become_text(self, text, key):
        assert values(text) == [{key: "a"}]

    @pytest.mark.parametrize("text", ["? [a]\n: b", "? {a: 1}\n: b", "null: a", "~: b"])
    def test_keys_that_are_no_single_value_are_refused(self, text):
        assert fault(text).cause.startswith("a key must")

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
            ("a: &x 1\nb: &x 2\nc: *x", {"a": 1, "b": 2, "c": 2}),
            ("a: &k key\n*k : 1", {"a": "key", "key": 1}),
            ("<<: {a: 1}\nb: 2", {"a": 1, "b": 2}),
            ("a: &x {k: 1}\nb:\n  <<: *x\n  k: 2", {"a": {"k": 1}, "b": {"k": 2}}),
            ("<<: [{a: 1},{a: 2, b: 3}]", {"a": 1, "b": 3}),
            ("a: <<", {"a": "<<"}),
            ("'<<': 1", {"<<": 1}),
        ],
    )
    def test_anchors_aliases_and_merge_keys(self, text, value):
        found = documents(text)
        assert [d.value for d in found] == [value]
        assert found[0].duplicates == ()

    def test_an_alias_is_a_copy(self):
        (value,) = values("a: &x [1]\nb: *x")
        value["a"].append(2)
        assert value["b"] == [1]

    def test_keys_that_occur_twice_are_noted_and_the_later_one_holds(self):
        (found,) = documents("# c\na: 1\nb:\n  c: 1\n  c: 2\na: 3\n1: x\n'1': z\n")
        assert found.value == {"a": 3, "b": {"c": 2}, "1": "z"}
        assert [str(d) for d in found.duplicates] == [
            'document 1, line 5: key "c" occurs twice',
            'document 1, line 6: key "a" occurs twice',
            'document 1, line 8: key "1" occurs twice',
        ]

    def test_a_merge_over_a_key_is_noted(self):
        (found,) = documents("a: &x {k: 1}\nb:\n  k: 2\n  <<: *x\n")
        assert found.value["b"] == {"k": 1}
        assert len(found.duplicates) == 1


class TestFaults:
    @pytest.mark.parametrize(
        ("text", "line", "cause"),
        [
            ("a: 1\nb: [1\nc: 2\n", 3, "while parsing a flow sequence"),
            ("a: b\n\tc: d", 2, "tab"),
            ("a: 1\n b: 2", 2, "mapping values are not allowed in this context"),
            ("a: x: y", 1, "mapping values are not allowed in this context"),
            ("a: @x", 1, "found character that cannot start any token"),
            ("b: 1\na: *nope", 2, "unknown anchor nope"),
            ("a: &a [*a]", 1, "anchor a contains itself"),
            ("b: 1\na: .nan", 2, "not a number that JSON can hold"),
            ("b: 1\na: !!python/object/apply:os.system [x]", 2, "no meaning in a Kubernetes"),
            ("a: !foo bar", 1, "the tag !foo has no meaning"),
            ("<<: 1", 1, '"<<" needs a mapping'),
            ("%YAML 1.2\n", 1, "document start"),
            ('a: "\\ud800"', 1, "invalid Unicode character escape code"),
        ],
    )
    def test_errors_name_source_document_line_and_cause(self, text, line, cause):
        error = fault("first: 1\n---\n" + text)
        assert (error.source, error.document) == ("x.yaml", 2)
        assert error.line - 2 in (line, line + 1)
        assert cause in error.cause
        assert str(error).startswith(f"x.yaml: document 2, line {error.line}: ")

    @pytest.mark.parametrize(
        ("text", "name"), [("- a", "a list"), ("x", "a single value"), ("null", "empty")]
    )
    def test_a_document_that_is_no_object_is_refused(self, text, name):
        assert fault(text).cause == f"is {name}, not an object"

    @pytest.mark.parametrize(
        "data",
        [
            b"a: \xff",
            b"\xff\xfea\x00:\x00 \x001\x00",
            b"a: \xed\xa0\x80",
            b"a: 1\nb: \xc3\x28\n",
        ],
    )
    def test_bytes_that_are_not_utf8_are_refused(self, data):
        assert "is not UTF-8 at byte" in fault(data).cause

    @pytest.mark.parametrize("data", [b"a: \x00", b"a: \x01", b"a: \x1b[31m"])
    def test_control_characters_are_refused(self, data):
        assert "control characters are not allowed" in fault(data).cause

    @pytest.mark.parametrize("data", [b"\xe2\x80\xa8", b"\xc2\x85\n\xc2\x85"])
    def test_a_document_of_unusual_line_ends_alone_ends(self, data):
        assert fault(data).cause == "is empty, not an object"

    def test_messages_are_printable_and_short(self):
        error = fault(f'a: "\\e[31m{"x" * 500}"\nb: *{"y" * 500}')
        assert str(error).isprintable()
        assert len(str(error)) < 400
        assert shown("a\x1bb\u202e" + "x" * 200, 10) == "a?b?xxx..."


class TestLimits:
    def test_depth(self):
        assert documents("a: " + "[" * 200 + "]" * 200)
        assert "nested deeper than" in fault("a: " + "[" * 5000 + "]" * 5000).cause
        assert "nested deeper than" in fault("- " * 5000 + "a").cause

    def test_depth_of_aliases(self):
        chain = "".join(f"a{n}: &a{n} {'[' * 40}*a{n - 1}{']' * 40}\n" for n in range(1, 8))
        assert "nested deeper than" in fault("a0: &a0 1\n" + chain).cause

    def test_aliases_that_multiply(self):
        rows = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
        rows += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
        assert "aliases expand to more" in fault("\n".join(rows)).cause

    def test_aliases_of_a_long_text(self):
        text = f"a: &a {'x' * 100_000}\nb: [{','.join(['*a'] * 200)}]"
        assert "aliases expand to more" in fault(text).cause

    def test_number_of_aliases(self):
        text = f"a: &a 1\nb: [{','.join(['*a'] * 1001)}]"
        assert "more than 1000 aliases" in fault(text).cause

    def test_bytes_of_a_document(self, monkeypatch):
        monkeypatch.setattr(manifest, "DOCUMENT_BYTES_MAX", 100)
        assert "is longer than" in str(fault("a: 1\n---\nb: " + "x" * 200))

    def test_a_document_without_end_is_not_read_to_its_end(self):
        class Endless(io.BytesIO):
            given = 0

            def read(self, size=-1, /):
                self.given += size
                return b"x" * size

        stream = Endless()
        with pytest.raises(ManifestError, match="the document at line 1 is longer than 10 MiB"):
            list(iter_documents(stream, source="x"))
        assert stream.given < 13 * 2**20

    def test_number_of_documents(self, monkeypatch):
        monkeypatch.setattr(manifest, "DOCUMENTS_MAX", 2)
        assert "more than 2 documents" in str(fault("a: 1\n---\na: 1\n---\na: 1\n"))


texts = st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0xFFFF), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner),
    max_leaves=12,
)


@given(st.dictionaries(texts, json_values, min_size=1, max_size=5))
@settings(max_examples=60)
def test_json_is_read_as_json(value):
    assert values(json.dumps(value)) == [value]


@given(st.dictionaries(texts, json_values, min_size=1, max_size=5))
@settings(max_examples=60)
def test_what_a_writer_of_yaml_writes_is_read_back(value):
    assert values(yaml.safe_dump(value, sort_keys=False, default_style='"')) == [value]


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_are_read_or_refused(data):
    with contextlib.suppress(ManifestError):
        documents(data)


@given(st.text("ab:- \n\t|>&*!#?[]{},'\"%@0=<~.", max_size=60))
@settings(max_examples=300)
def test_any_yaml_is_read_as_json_or_refused(text):
    try:
        found = documents(text)
    except ManifestError:
        return
    for document in found:
        assert json.loads(json.dumps(document.value)) == document.value


def test_real_packages_read_as_pyyaml_reads_them():
    if not PACKAGES.is_dir():
        pytest.skip(f"needs real packages in {PACKAGES}")
    paths = sorted(PACKAGES.glob("**/*.yaml"))
    assert paths
    for path in paths:
        data = path.read_bytes()
        expected = [v for v in yaml.load_all(data, yaml.CSafeLoader) if v is not None]
        assert values(data) == expected, path
