"""How properties are run, and the strategies that they share.

A property is a function of generated input. It is tried some dozen times in the normal run, and
for as long as ``--fuzz-seconds`` says in a long one. Each example has a budget of processor time
and memory: what reads others' bytes must not be made slow or large by them.
"""

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

BRIEF = 60  # examples in the normal run
ROUND = 500  # examples between two looks at the clock
CPU_SECONDS = 10.0  # of one example; the slowest take some milliseconds
MEMORY_BYTES = 64 * 2**20
MESSAGE_MAX = 2048  # characters of an error


def fuzzed(*strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Make a test of a property: a function that takes one value of each strategy."""

    def decorate(function: Callable[..., None]) -> Callable[[float], None]:
        def bounded(values: tuple[Any, ...]) -> None:
            with budget():
                function(*values)

        def run(examples: int) -> None:
            chosen = settings(
                max_examples=examples,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
            )
            chosen(given(st.tuples(*strategies))(bounded))()

        def test(fuzz_seconds: float) -> None:
            ends = time.monotonic() + fuzz_seconds
            run(BRIEF)
            while time.monotonic() < ends:
                run(ROUND)

        test.__name__, test.__doc__ = function.__name__, function.__doc__
        test.__module__ = function.__module__
        return test

    return decorate


@contextmanager
def budget(memory: int = MEMORY_BYTES) -> Iterator[None]:
    """Check what one example costs in processor time and memory."""
    tracemalloc.start()
    begun = time.process_time()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < CPU_SECONDS
    assert peak < memory


def check_text(error: Exception, part: str = "") -> None:
    """Check that an error's text is one bounded line without control characters."""
    text = str(error)
    assert text.isprintable(), repr(text)
    assert 0 < len(text) <= MESSAGE_MAX
    assert part in text


@st.composite
def damaged(draw: st.DrawFn, originals: st.SearchStrategy[bytes]) -> bytes:
    """Bytes that are nearly right: some of them changed, doubled, left out or put in."""
    content = bytearray(draw(originals))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.sampled_from((1, 1, 2, 8, 100, 512)))
        change = draw(st.sampled_from(("set", "drop", "double", "put", "cut")))
        part = content[at : at + length]
        if change == "set":
            content[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
        elif change == "drop":
            del content[at : at + length]
        elif change == "double":
            content[at:at] = part * draw(st.sampled_from((1, 2, 50)))
        elif change == "put":
            content[at:at] = draw(st.binary(max_size=16))
        else:
            del content[at:]
    return bytes(content)


def damaged_text(*originals: str) -> st.SearchStrategy[str]:
    """Texts that are nearly right, in Latin-1."""
    chosen = st.sampled_from([original.encode("latin-1") for original in originals])
    return damaged(chosen).map(lambda raw: raw.decode("latin-1"))


def json_values(leaves: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[Any]:
    """JSON values of any shape, with some that are larger or odder than usual."""
    odd = st.sampled_from([0, -1, 2**63, 1e300, "", "\ud800", "\0", "a" * 5000, True, None])
    usual = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    kinds = odd | usual if leaves is None else odd | usual | leaves
    return st.recursive(
        kinds,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=12,
    )


@st.composite
def altered(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document with some of its values replaced or left out."""
    if draw(st.integers(0, 9)) == 0:
        return draw(json_values())
    if isinstance(document, dict):
        kept = {name: value for name, value in document.items() if draw(st.integers(0, 15))}
        return {name: draw(altered(value)) for name, value in kept.items()}
    if isinstance(document, list):
        return [draw(altered(value)) for value in document if draw(st.integers(0, 15))]
    return document
