"""What a cache did and holds, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What a cache did and holds.

    Attributes:
        mode: ``rw``, ``ro`` (nothing is stored) or ``off``.
        entries: packages.
        size: bytes of the packages.
        leased: bytes of those that somebody needs.
        budget: bytes that they may take.
        hits: packages that were found.
        misses: packages that were not.
        stores: packages that were stored.
        evictions: packages that were removed.
        damaged: entries that were not what was stored.
        failures: packages that could not be read or stored.
    """

    mode: Literal["rw", "ro", "off"]
    entries: int = 0
    size: int = 0
    leased: int = 0
    budget: int = 0
    hits: int = 0
    misses: int = 0
    stores: int = 0
    evictions: int = 0
    damaged: int = 0
    failures: int = 0
