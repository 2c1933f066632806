"""Ready keys: by priority, and first in, first out within one priority.

Where next: ``controller.flow.workqueue`` hands them out.

Source: controller-runtime's ``priorityqueue``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

LOW = -100  # first lists and resyncs: nothing is known to have changed
NORMAL = 0

_EMPTY_CLASSES_KEPT = 8


class ReadyKeys(Generic[K]):
    """Keys, each once, that leave by priority and then in the order in which they came.

    Appending, removing and popping take constant time for the few priorities that are in use.
    """

    __slots__ = ("_classes",)

    def __init__(self) -> None:
        # Highest priority first. An ordered dict, so that a key can leave from the middle.
        self._classes: dict[int, OrderedDict[K, None]] = {
            NORMAL: OrderedDict(),
            LOW: OrderedDict(),
        }

    def __len__(self) -> int:
        return sum(map(len, self._classes.values()))

    def __bool__(self) -> bool:
        return any(self._classes.values())

    def __iter__(self) -> Iterator[K]:
        """Yield the keys in the order in which they would leave."""
        for keys in self._classes.values():
            yield from keys

    def append(self, key: K, priority: int) -> None:
        """Put key behind the others of its priority; it must not be here yet."""
        keys = self._classes.get(priority)
        if keys is None:
            keys = self._open(priority)
        keys[key] = None

    def remove(self, key: K, priority: int) -> None:
        """Take key out; it must be here with that priority."""
        del self._classes[priority][key]

    def pop(self) -> K:
        """Return the oldest key of the highest priority; IndexError if there is none."""
        for keys in self._classes.values():
            if keys:
                return keys.popitem(last=False)[0]
        raise IndexError("no key is ready")

    def clear(self) -> None:
        """Drop all keys."""
        for keys in self._classes.values():
            keys.clear()

    def sizes(self) -> dict[int, int]:
        """Return the number of keys by priority, highest first, zeros included."""
        return {priority: len(keys) for priority, keys in self._classes.items()}

    def _open(self, priority: int) -> OrderedDict[K, None]:
        """Make room for a new priority; drop unused ones when they become many."""
        found = self._classes
        if len(found) >= _EMPTY_CLASSES_KEPT:
            found = {p: keys for p, keys in found.items() if keys or p in (NORMAL, LOW)}
        opened: OrderedDict[K, None] = OrderedDict()
        self._classes = dict(sorted([*found.items(), (priority, opened)], reverse=True))
        return opened
