"""What a cache holds and who needs it: bookkeeping by values. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from controller.registry.cached import CacheKey, Record

PINNED: Final = "pinned"  # the owner of imported packages: nothing but a person removes them


def contents_of(record: Record) -> set[str]:
    """Return the names of the content that a record names."""
    return {record.stream.stored_sha256, record.objects.stored_sha256}


@dataclass(frozen=True, slots=True)
class Held:
    """What the bookkeeping needs to know of a package.

    Attributes:
        contents: bytes of each file, by its name.
        used: seconds since the epoch of its last use.
    """

    key: CacheKey
    contents: Mapping[str, int]
    used: float = 0.0

    @classmethod
    def of(cls, record: Record, used: float = 0.0) -> Held:
        """Return what a record says."""
        both = (record.stream, record.objects)
        return cls(record.key, {c.stored_sha256: c.stored_size for c in both}, used)


class Ledger:
    """Packages by last use, how many of them share each content, and leases by owner."""

    def __init__(self) -> None:
        self._held: OrderedDict[CacheKey, Held] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._sizes: dict[str, int] = {}
        self._leases: dict[str, set[CacheKey]] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: CacheKey) -> bool:
        return key in self._held

    def load(self, held: Iterable[Held], leases: Mapping[str, Collection[CacheKey]]) -> None:
        """Replace everything by what is there now.

        Args:
            held: the packages; those known before keep the later of both times of use.
            leases: what each owner needs.
        """
        before = {key: mine.used for key, mine in self._held.items()}
        self._held.clear()
        self._users.clear()
        self._sizes.clear()
        self.size = 0
        found = [
            Held(mine.key, mine.contents, max(mine.used, before.get(mine.key, 0.0)))
            for mine in held
        ]
        for mine in sorted(found, key=lambda item: item.used):
            self.enter(mine)
        self._leases = {owner: set(keys) for owner, keys in leases.items()}

    def enter(self, held: Held) -> None:
        """Note a package that is there and was used just now."""
        self.leave(held.key)
        self._held[held.key] = held
        for name, size in held.contents.items():
            self._users[name] += 1
            if self._users[name] == 1:
                self._sizes[name] = size
                self.size += size

    def used(self, key: CacheKey, time: float) -> None:
        """Note that a package that is there was used at a time."""
        held = self._held.get(key)
        if held is not None:
            self.enter(Held(key, held.contents, time))

    def leave(self, key: CacheKey) -> bool:
        """Note that a package is gone; tell whether it was known."""
        held = self._held.pop(key, None)
        for name in held.contents if held is not None else ():
            self._users[name] -= 1
            if self._users[name] == 0:
                del self._users[name]
                self.size -= self._sizes.pop(name)
        return held is not None

    def held(self) -> list[Held]:
        """Return the packages, least recently used first."""
        return list(self._held.values())

    def contents_of_only(self, key: CacheKey) -> set[str]:
        """Return the content that no other package shares with this one."""
        held = self._held.get(key)
        if held is None:
            return set()
        return {name for name in held.contents if self._users[name] == 1}

    def lease(self, owner: str, keys: Iterable[CacheKey]) -> None:
        """Note that an owner needs packages."""
        self._leases.setdefault(owner, set()).update(keys)

    def release(self, owner: str) -> None:
        """Forget what an owner needs."""
        self._leases.pop(owner, None)

    def owners(self) -> list[str]:
        """Return who needs anything."""
        return list(self._leases)

    def keys_of(self, owner: str) -> frozenset[CacheKey]:
        """Return what an owner needs."""
        return frozenset(self._leases.get(owner, ()))

    def owners_of(self, key: CacheKey) -> list[str]:
        """Return who needs a package."""
        return sorted(owner for owner, keys in self._leases.items() if key in keys)

    def freed_by(self, owner: str) -> list[CacheKey]:
        """Return what nobody needs once this owner is gone."""
        others = {key for name, keys in self._leases.items() if name != owner for key in keys}
        return sorted(self.keys_of(owner) - others, key=str)

    def leased(self) -> set[CacheKey]:
        """Return the packages that somebody needs."""
        return {key for keys in self._leases.values() for key in keys}

    def leased_size(self) -> int:
        """Return the bytes of the packages that somebody needs."""
        leased = self.leased()
        names = {n for key, held in self._held.items() if key in leased for n in held.contents}
        return sum(self._sizes[name] for name in names)

    def unleased(self) -> list[CacheKey]:
        """Return the packages that nobody needs, least recently used first."""
        leased = self.leased()
        return [key for key in self._held if key not in leased]

    def unused_since(self, time: float) -> list[CacheKey]:
        """Return the packages that nobody needs and nobody used since a time."""
        return [key for key in self.unleased() if self._held[key].used <= time]

    def victims(self, new: Held | None, budget: int, *, reserved: int = 0) -> list[CacheKey] | None:
        """Return which packages go so that another one fits.

        Args:
            new: the package that comes; None to only keep to the budget.
            budget: bytes that the cache may hold.
            reserved: bytes that are being written for others.

        Returns:
            Packages that nobody needs, least recently used first; None when even all of them are
            not enough.
        """
        keep = new.contents if new is not None else {}
        excess = self.size + reserved - budget
        excess += sum(size for name, size in keep.items() if name not in self._sizes)
        if excess <= 0:
            return []
        users, chosen = Counter(self._users), []
        for key in self.unleased():
            if excess <= 0:
                break
            if new is not None and key == new.key:
                continue
            chosen.append(key)
            excess -= self._freed(self._held[key], users, keep)
        return chosen if excess <= 0 else None

    def _freed(self, held: Held, users: Counter[str], keep: Collection[str]) -> int:
        """Return the bytes that go with a package, given who else still shares its content."""
        freed = 0
        for name in held.contents:
            users[name] -= 1
            if users[name] == 0 and name not in keep:
                freed += self._sizes[name]
        return freed
