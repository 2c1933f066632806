"""What becomes of an event: a new one, one more of an earlier one, part of a combined one, or none.

Guarantees:
    A decision takes no time and waits for nothing; the time is given in. What is remembered is
    bounded: the least recently seen is forgotten first.
Assumptions:
    The times that are given never go back.

Source: the order and the limits of client-go's event correlator: aggregate, count, filter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

REMEMBERED_MAX = 4096  # entries of each memory
SIMILAR_MAX = 10  # different messages; from this one on they are combined
SIMILAR_SECONDS = 600.0  # without a similar event, after which the messages are counted anew
BURST = 25  # events that one object may cause at once
REFILL_SECONDS = 300.0  # until an object may cause one more
MESSAGE_MAX = 1024  # bytes, of the API server's rule
COMBINED = "(combined from similar events): "

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Happening:
    """What is said about an object; two equal ones are the same event."""

    api_version: str
    kind: str
    name: str
    namespace: str
    uid: str
    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Observation:
    """One event as it is to be written.

    ``count`` above 1 says that the event of that name was observed before. ``first`` and
    ``last`` are timestamps as Kubernetes writes them.
    """

    happening: Happening
    name: str
    count: int
    first: str
    last: str
    combined: bool = False


class Recent(Generic[_Key, _Value]):
    """A memory of so many entries; the least recently set is forgotten first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[_Key, _Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: _Key) -> _Value | None:
        """Return an entry, None when it is not there; that alone is no use of it."""
        return self._entries.get(key)

    def put(self, key: _Key, value: _Value) -> None:
        """Set an entry, and forget another when there are too many."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)


class EventCorrelator:
    """Decides about the events of one reporter.

    Args:
        remembered: how many events, groups of similar events and objects are remembered.
        similar_key: what similar events have in common; by default all but the message.
        similar_message: the message of a combined event, made of its latest event's.
    """

    def __init__(
        self,
        *,
        remembered: int = REMEMBERED_MAX,
        similar_key: Callable[[Happening], Hashable] | None = None,
        similar_message: Callable[[Happening], str] | None = None,
    ) -> None:
        self._similar_key = similar_key or _without_message
        self._similar_message = similar_message or _combined_message
        self._groups: Recent[Hashable, tuple[float, frozenset[int]]] = Recent(remembered)
        self._observed: Recent[Hashable, Observation] = Recent(remembered)
        self._buckets: Recent[Hashable, tuple[float, float]] = Recent(remembered)

    def correlate(
        self, happening: Happening, *, now: float, stamp: str, fresh_name: str
    ) -> Observation | None:
        """Decide what is written about a happening.

        Args:
            happening: what happened; its message has at most 1,024 bytes.
            now: seconds of a clock that never goes back.
            stamp: the same moment as Kubernetes writes it.
            fresh_name: the name of the event if it is a new one.

        Returns:
            The event to write; None when its object has caused too many. One that is held back
            is counted all the same, so that the next one that passes tells the true number.
        """
        group = self._group(happening, now)
        key: Hashable = happening
        if group is not None:
            key = (COMBINED, group)
            happening = replace(happening, message=shortened(self._similar_message(happening)))
        last = self._observed.get(key)
        observation = Observation(
            happening,
            name=last.name if last else fresh_name,
            count=last.count + 1 if last else 1,
            first=last.first if last else stamp,
            last=stamp,
            combined=group is not None,
        )
        self._observed.put(key, observation)
        return observation if self._passes(happening, now) else None

    def _group(self, happening: Happening, now: float) -> Hashable | None:
        """Return the group whose combined event stands for this one; None when it is its own.

        The first nine messages of a group stay events of their own when they come again.
        """
        key = self._similar_key(happening)
        seen_at, messages = self._groups.get(key) or (now, frozenset())
        if now - seen_at > SIMILAR_SECONDS:
            messages = frozenset()
        message = hash(happening.message)
        full = message not in messages and len(messages) >= SIMILAR_MAX - 1
        self._groups.put(key, (now, messages if full else messages | {message}))
        return key if full else None

    def _passes(self, happening: Happening, now: float) -> bool:
        """Take a token of the object's bucket; the reporter is the same for all."""
        key = replace(happening, type="", reason="", message="")
        filled_at, tokens = self._buckets.get(key) or (now, float(BURST))
        tokens = min(float(BURST), tokens + (now - filled_at) / REFILL_SECONDS)
        passes = tokens >= 1
        self._buckets.put(key, (now, tokens - 1 if passes else tokens))
        return passes


def _without_message(happening: Happening) -> Hashable:
    return replace(happening, message="")


def _combined_message(happening: Happening) -> str:
    return COMBINED + happening.message


def shortened(message: str) -> str:
    """Return a message of at most 1,024 bytes."""
    encoded = message.encode(errors="replace")
    if len(encoded) <= MESSAGE_MAX:
        return encoded.decode()
    return encoded[: MESSAGE_MAX - 3].decode(errors="ignore") + "…"
