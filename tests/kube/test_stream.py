import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.kube.stream import ENVELOPE_MAX, LineLimitError, LineSplitter, ListSplitter


def test_a_line_may_come_in_many_chunks():
    splitter = LineSplitter()
    assert splitter.feed(b'{"a"') == []
    assert splitter.feed(b":1}\n{") == [b'{"a":1}']
    assert splitter.feed(b"}\n") == [b"{}"]


def test_a_line_of_many_megabytes_is_one_line():
    splitter = LineSplitter()
    chunk = b"x" * 100_000
    for _ in range(100):
        assert splitter.feed(chunk) == []
    (line,) = splitter.feed(b"\n")
    assert len(line) == 10_000_000


def test_empty_lines_are_left_out():
    assert LineSplitter().feed(b"\n\r\n{}\n\n") == [b"{}"]


def test_a_line_beyond_the_limit_is_refused():
    splitter = LineSplitter(limit=10)
    assert splitter.feed(b"0123456789\n") == [b"0123456789"]
    splitter.feed(b"0123456789")
    with pytest.raises(LineLimitError, match="longer than 10 bytes"):
        splitter.feed(b"0")


@given(
    lines=st.lists(st.binary(min_size=1, max_size=20).map(lambda b: b.replace(b"\n", b"x") + b".")),
    cuts=st.lists(st.integers(1, 15), min_size=1),
)
def test_cutting_does_not_matter(lines: list[bytes], cuts: list[int]):
    stream = b"".join(line + b"\n" for line in lines)
    splitter, found, at = LineSplitter(), [], 0
    while at < len(stream):
        size = cuts[at % len(cuts)]
        found += splitter.feed(stream[at : at + size])
        at += size
    assert found == lines


# ---- lists ---------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(alphabet='a"\\\n{}[],:é', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
ITEMS = st.lists(
    st.dictionaries(st.text(alphabet='a"{}\\[', max_size=4), VALUES, max_size=3), max_size=4
)


def cut(body: bytes, sizes: list[int], **options: int) -> tuple[list[bytes], bytes]:
    splitter, found, at = ListSplitter(**options), [], 0
    for n in range(len(body)):
        if at >= len(body):
            break
        size = sizes[n % len(sizes)]
        found += splitter.feed(body[at : at + size])
        at += size
    return found, splitter.envelope


@given(
    items=ITEMS,
    sizes=st.lists(st.integers(1, 40), min_size=1),
    first=st.booleans(),
    option=st.sampled_from([0, orjson.OPT_INDENT_2, orjson.OPT_APPEND_NEWLINE]),
)
def test_a_list_is_cut_into_its_items_and_the_rest(
    items: list[object], sizes: list[int], first: bool, option: int
):
    """Items come first in lists of custom resources and last in others."""
    rest = {"kind": "ConfigMapList", "metadata": {"resourceVersion": "7", "continue": '"items":['}}
    whole = {"items": items, **rest} if first else {**rest, "items": items}
    found, envelope = cut(orjson.dumps(whole, option=option), sizes)
    assert [orjson.loads(each) for each in found] == items
    assert orjson.loads(envelope) == {**rest, "items": []}


@pytest.mark.parametrize(
    "body", [b'{"kind":"Table","rows":[]}', b'{"items":null}', b"<html>", b'{"items":[1,2]}', b"[]"]
)
def test_what_is_no_list_of_objects_is_left_as_it_is(body: bytes):
    assert cut(body, [3]) == ([], body)


@pytest.mark.parametrize("end", [1, 2, 10])
def test_a_torn_list_leaves_no_whole_envelope(end: int):
    body = b'{"items":[{"a":{}},{"b":"}"}]}'
    found, envelope = cut(body[:-end], [5])
    assert found[0] == b'{"a":{}}'
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(envelope)


def test_items_and_envelope_have_limits():
    assert cut(b'{"items":[{"a":"0123456789"}]}', [4], limit=20)[0] == [b'{"a":"0123456789"}']
    with pytest.raises(LineLimitError, match="an item of a list is longer than 20 bytes"):
        cut(b'{"items":[{"a":"01234567890123456789"}]}', [4], limit=20)
    with pytest.raises(LineLimitError, match="a list without its items"):
        cut(b"x" * (ENVELOPE_MAX + 1), [65536])
