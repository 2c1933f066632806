"""Hostile content of package.yaml, as numbered in the threat model (T62 to T71)."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest

from controller.model.content import ParsedPackage, parse_to_lines
from controller.model.manifest import ManifestError, iter_documents
from controller.xpkg.build import build
from controller.xpkg.errors import BuildError
from controller.xpkg.parse import parse_in_process
from tests.xpkg.tars import tree

META = "apiVersion: meta.pkg.crossplane.io/v1\nkind: Provider\nmetadata: {name: p}\n"
CRD = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: a}\n"
MEMORY_MAX = 64 * 2**20


def parsed(text: str | bytes) -> tuple[ParsedPackage, list[dict[str, Any]]]:
    """Return what a package.yaml holds: its index and its objects."""
    data = text if isinstance(text, bytes) else text.encode()
    lines = io.BytesIO()
    package = parse_to_lines(io.BytesIO(data), lines, source="package.yaml")
    return package, [json.loads(line) for line in lines.getvalue().splitlines()[:-1]]


def spec(text: str) -> object:
    """Return what a loader makes of a value, in the place where a CRD has its defaults."""
    _, (crd,) = parsed(f"{META}---\n{CRD}spec:\n  value: {text}\n")
    return crd["spec"]["value"]


def fault(text: str | bytes) -> str:
    """Return why a package.yaml is refused; it costs little to find out."""
    tracemalloc.start()
    try:
        with pytest.raises(ManifestError) as caught:
            parsed(text)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert len(message) < 1024
    assert message.isprintable()
    return message


class TestT62Encoding:
    @pytest.mark.parametrize(
        ("text", "cause"),
        [
            (META.encode() + b"# \xff\n", "is not UTF-8 at byte 75 of the document"),
            (META.encode("utf-16"), "is not UTF-8 at byte 0 of the document"),
            (META.encode() + b"a: \xed\xa0\x80\n", "is not UTF-8 at byte 76 of the document"),
            (META.encode() + b"a: \x00b\n", "control characters are not allowed at byte 76"),
            (META.encode() + b"a: \x1bb\n", "control characters are not allowed at byte 76"),
        ],
        ids=["not UTF-8", "UTF-16", "a lone surrogate", "NUL", "escape"],
    )
    def test_t62_is_refused_with_its_place(self, text, cause):
        assert cause in fault(text)

    def test_t62_a_byte_order_mark_is_tolerated(self):
        package, _ = parsed(b"\xef\xbb\xbf" + META.encode())
        assert package.meta["metadata"] == {"name": "p"}


class TestT63Aliases:
    async def test_t63_a_billion_laughs(self, tmp_path):
        rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
        stream = tmp_path / "package.yaml"
        stream.write_text(META + "\n".join(rows))
        with pytest.raises(ManifestError, match="aliases expand to more"):
            await parse_in_process(stream, tmp_path / "lines")
        assert list(tmp_path.iterdir()) == [stream]

    def test_t63_more_than_a_thousand(self):
        aliases = ", ".join(["*a"] * 1001)
        assert "uses more than 1000 aliases" in fault(f"{META}a: &a x\nb: [{aliases}]\n")

    def test_t63_an_anchor_that_contains_itself(self):
        assert "anchor a contains itself" in fault(f"{META}a: &a [*a]\n")


@pytest.mark.parametrize("text", ["- " * 5000 + "x", "[" * 5000, "{a: " * 5000], ids=len)
def test_t64_depth(text):
    assert "is nested deeper than 250 levels" in fault(f"{META}a:\n  {text}\n")


class TestT65DuplicateKeys:
    TEXT = f"{META}---\n{CRD}spec: {{a: 1}}\nspec: {{a: 2}}\n"

    def test_t65_the_later_one_holds_at_install_and_is_noted(self):
        package, (crd,) = parsed(self.TEXT)
        assert crd["spec"] == {"a": 2}
        assert [each.what for each in package.duplicates] == ['key "spec" occurs twice']

    def test_t65_a_build_refuses_them(self, tmp_path):
        root = tree(
            tmp_path, {"crossplane.yaml": META, "crd.yaml": self.TEXT.partition("---\n")[2]}
        )
        with pytest.raises(BuildError, match=r'crd.yaml: document 1, line 5: key "spec" occurs'):
            build(root)
        assert list(root.glob("*.xpkg")) == []


@pytest.mark.parametrize(
    ("value", "tag"),
    [
        ("!!python/object/apply:os.system [id]", "!!python/object/apply:os.system"),
        ("!!python/name:os.system", "!!python/name:os.system"),
        ("!custom x", "!custom"),
        ("!!set {a}", "!!set"),
    ],
)
def test_t66_tags_run_nothing_and_are_refused(value, tag):
    message = fault(f"{META}a: {value}\n")
    assert f"the tag {tag} has no meaning" in message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2020-01-01", "2020-01-01"),
        ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"),
        ("12:30:45", "12:30:45"),
        ("0777", 511),
        ("yes", True),
        ("'yes'", "yes"),
        ("off", False),
        ("1e3", 1000.0),
        ("~", None),
        ("0x1F", 31),
        ("1_000", 1000),
    ],
)
def test_t67_words_mean_what_go_makes_of_them(text, value):
    found = spec(text)
    assert found == value
    assert type(found) is type(value) or isinstance(value, float)


class TestT68Keys:
    def test_t68_numbers_and_nothing_become_text(self):
        assert spec("{1: a, true: b}") == {"1": "a", "true": "b"}

    def test_t68_mappings_are_merged(self):
        text = f"{META}---\n{CRD}x: &x {{a: 1, b: 2}}\nspec:\n  <<: *x\n  b: 3\n"
        assert parsed(text)[1][0]["spec"] == {"a": 1, "b": 3}

    def test_t68_complex_keys_are_refused(self):
        assert "a key must be a single value" in fault(f"{META}? [a]\n: b\n")


class TestT69Sizes:
    @pytest.mark.parametrize(
        "text",
        [
            META + "a:\n" + "- x\n" * (3 * 2**20),
            META + "a: " + "x" * (10 * 2**20) + "\n",
            META + "---\n" + "# comment\n" * (2 * 2**20),
        ],
        ids=["a long document", "a long line", "comments"],
    )
    def test_t69_a_document_of_more_than_10_mebibytes(self, text):
        assert "is longer than 10 MiB" in fault(text)

    def test_t69_more_than_20000_documents(self):
        documents = iter_documents(io.BytesIO(b"a: 1\n---\n" * 20_001), source="package.yaml")
        with pytest.raises(ManifestError, match="holds more than 20000 documents"):
            for _ in documents:
                pass


class TestT70Separators:
    @pytest.mark.parametrize(
        "separator",
        ["---\n", "--- \n", "---\t\n", "---\r\n", "--- # comment\n", "...\n---\n"],
    )
    def test_t70_between_documents(self, separator):
        package, objects = parsed(f"{META}{separator}{CRD}")
        assert package.meta["kind"] == "Provider"
        assert [each["kind"] for each in objects] == ["CustomResourceDefinition"]

    def test_t70_carriage_returns_end_lines(self):
        _, objects = parsed(f"{META}---\n{CRD}".replace("\n", "\r\n"))
        assert objects[0]["metadata"] == {"name": "a"}

    def test_t70_dashes_in_a_block_of_text_are_text_when_indented(self):
        assert spec("|\n    a\n    ---\n    b") == "a\n---\nb\n"

    def test_t70_a_directive_has_no_document_of_its_own(self):
        message = fault(f"%YAML 1.2\n---\n{META}")
        assert message.startswith("package.yaml: document 1, line 2: ")

    def test_t70_tabs_for_indentation_are_refused(self):
        assert "package.yaml: document 1, line 5: " in fault(f"{META}a:\n\tb: c\n")


class TestT71Objects:
    @pytest.mark.parametrize(
        ("text", "cause"),
        [
            (f"{META}---\n{META}", "not exactly one package meta type"),
            (CRD, "not exactly one package meta type"),
            ("", "not exactly one package meta type"),
            (
                f"{META}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n",
                'no kind "Secret"',
            ),
            (f"{META}---\nkind: Thing\n", "apiVersion is missing"),
            (f"{META}---\n- a\n", "is a list, not an object"),
        ],
        ids=["two", "none", "nothing", "unknown", "no version", "a list"],
    )
    def test_t71_are_refused_by_their_kind(self, text, cause):
        assert cause in fault(text)
