import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.kube.stream import LineLimitError, LineSplitter


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
