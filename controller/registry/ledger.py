"""What a cache holds and who needs it: bookkeeping by values. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable

from controller.registry.cached import CacheKey, Record


def contents_of(record: Record) -> set[str]:
    """Return the names of the content that a record names."""
    return {record.stream.stored_sha256, record.objects.stored_sha256}


class Ledger:
    """Packages by last use, how many of them share each content, and leases by owner."""

    def __init__(self) -> None:
        self._records: OrderedDict[CacheKey, Record] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._sizes: dict[str, int] = {}
        self._leases: dict[str, set[CacheKey]] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._records)

    def enter(self, record: Record) -> None:
        """Note a package that is there and was used just now."""
        self.leave(record.key)
        self._records[record.key] = record
        for name, size in _sizes(record).items():
            self._users[name] += 1
            if self._users[name] == 1:
                self._sizes[name] = size
                self.size += size

    def leave(self, key: CacheKey) -> bool:
        """Note that a package is gone; tell whether it was known."""
        record = self._records.pop(key, None)
        for name in contents_of(record) if record is not None else ():
            self._users[name] -= 1
            if self._users[name] == 0:
                del self._users[name]
                self.size -= self._sizes.pop(name)
        return record is not None

    def contents_of_only(self, key: CacheKey) -> set[str]:
        """Return the content that no other package shares with this one."""
        record = self._records.get(key)
        if record is None:
            return set()
        return {name for name in contents_of(record) if self._users[name] == 1}

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

    def freed_by(self, owner: str) -> list[CacheKey]:
        """Return what nobody needs once this owner is gone."""
        others = {key for name, keys in self._leases.items() if name != owner for key in keys}
        return sorted(self.keys_of(owner) - others, key=str)

    def unleased(self) -> list[CacheKey]:
        """Return the packages that nobody needs, least recently used first."""
        leased = {key for keys in self._leases.values() for key in keys}
        return [key for key in self._records if key not in leased]

    def victims(self, record: Record, budget: int) -> list[CacheKey] | None:
        """Return which packages go so that another one fits.

        Args:
            record: of the package that comes.
            budget: bytes that the cache may hold.

        Returns:
            Packages that nobody needs, least recently used first; None when even all of them are
            not enough.
        """
        keep = contents_of(record)
        excess = self.size - budget
        excess += sum(size for name, size in _sizes(record).items() if name not in self._sizes)
        users, chosen = Counter(self._users), []
        for key in self.unleased():
            if excess <= 0:
                break
            if key == record.key:
                continue
            chosen.append(key)
            excess -= self._freed(self._records[key], users, keep)
        return chosen if excess <= 0 else None

    def _freed(self, record: Record, users: Counter[str], keep: Collection[str]) -> int:
        """Return the bytes that go with a package, given who else still shares its content."""
        freed = 0
        for name in contents_of(record):
            users[name] -= 1
            if users[name] == 0 and name not in keep:
                freed += self._sizes[name]
        return freed


def _sizes(record: Record) -> dict[str, int]:
    return {
        content.stored_sha256: content.stored_size for content in (record.stream, record.objects)
    }
