"""Finds who changes objects of a store, which are read only; switched on for tests.

With ``CROSSDOCK_CACHE_MUTATION_DETECTOR=1`` in the environment every store keeps the JSON of each
object beside it and compares the two whenever the object is replaced or removed, and once a second.

Guarantees:
    A changed object is logged at error level with its kind, namespace, name and the field that
    differs, once for each change, and counted. No value is logged: an object may be a Secret.

Source: client-go's cache mutation detector.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import orjson
import structlog

from controller.kube.reflector import Pacer
from controller.model.objects import JsonObject

VARIABLE = "CROSSDOCK_CACHE_MUTATION_DETECTOR"
PERIOD = 1.0  # seconds between two looks at all objects

_log = structlog.get_logger("controller.kube")


def wanted(environment: Mapping[str, str]) -> bool:
    """Tell whether the environment asks for detectors."""
    return environment.get(VARIABLE) == "1"


ENABLED = wanted(os.environ)


class MutationDetector:
    """Compares the objects of one store with what they were when they were stored.

    Args:
        kind: of the objects.

    Attributes:
        violations: changes found so far.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._kept: dict[tuple[str, str], tuple[JsonObject, bytes]] = {}
        self.violations = 0

    def put(self, key: tuple[str, str], obj: JsonObject | None) -> None:
        """Compare the object under a key for the last time, and keep the one that follows it.

        Args:
            key: namespace and name.
            obj: the object that is stored from now on; None when it is removed.
        """
        self._check(key)
        if obj is None:
            self._kept.pop(key, None)
        else:
            self._kept[key] = (obj, _packed(obj))

    async def run(self) -> None:
        """Compare all objects, a few at a time, every second until cancelled."""
        while True:
            await asyncio.sleep(PERIOD)
            pacer = Pacer()
            for key in tuple(self._kept):
                self._check(key)
                await pacer.pause()

    def _check(self, key: tuple[str, str]) -> None:
        if key not in self._kept:
            return
        obj, before = self._kept[key]
        now = _packed(obj)
        if now == before:
            return
        self.violations += 1
        self._kept[key] = (obj, now)
        namespace, name = key
        _log.error(
            "stored object was changed in place",
            kind=self._kind,
            namespace=namespace,
            name=name,
            field=_difference(before, obj),
        )


def detector(kind: str) -> MutationDetector | None:
    """Return a detector for the objects of a store, None when none is wanted."""
    return MutationDetector(kind) if ENABLED else None


def _packed(value: Any) -> bytes:
    """Return a value as JSON, empty when it has become something that JSON cannot hold."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        return b""


def _difference(before: bytes, obj: JsonObject) -> str:
    """Return the first field that differs; of the metadata also the field in it."""
    then = orjson.loads(before) if before else {}
    field = _first(then, obj)
    if field == "metadata" and isinstance(obj.get(field), dict):
        return f"{field}.{_first(then.get(field) or {}, obj[field])}"
    return field


def _first(then: JsonObject, now: JsonObject) -> str:
    for name in sorted({*then, *map(str, now)}):
        if name not in then or name not in now or _packed(then[name]) != _packed(now[name]):
            return name
    return ""
