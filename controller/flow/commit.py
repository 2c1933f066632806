"""The committer: the only writer of the status of packages and revisions.

Guarantees: reports about one object that arrive within the window end in one write; a report that
changes nothing writes nothing; each condition type and field has one source; no report is lost
while its object exists, whatever the API server answers; transitions are announced only after the
write that made them.
Assumptions: status is written by server-side apply, so a write must name everything this manager
owns: what it leaves out is removed. Conditions are a list keyed by type.
Where next: ``write`` and ``on_transition`` lead to the API server, through the arguments.

Source: the Kubernetes API conventions ("Typical status properties"), server-side apply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog
from structlog.typing import FilteringBoundLogger

from controller.flow.hanging import HangingPasses
from controller.flow.status import Merged, RollUp, merge, status_body, with_generation
from controller.flow.worker import Again, Done, FlowMetrics, Outcome, run_workers
from controller.flow.workqueue import Backoff, WorkQueue
from controller.model.conditions import Condition, Report, condition_of
from controller.model.objects import JsonObject, Key, generation_of, uid_of

_log: FilteringBoundLogger = structlog.get_logger(__name__)

NAME = "status"  # the committer in logs and metrics, and the source of roll-ups
_UNSEEN_POLL = 5.0  # seconds between looks whether the store shows a write


class Conflict(Exception):  # noqa: N818 - named for the API server's answer
    """The object changed since it was read: the write is to be merged again."""


class Gone(Exception):  # noqa: N818 - named for the API server's answer
    """The object does not exist any more."""


class TwoSources(Exception):  # noqa: N818 - named for what is wrong with the program
    """Two stages state the same condition type or field of one kind of object."""


@dataclass(frozen=True, slots=True)
class View:
    """The status of an object as it will be: conditions by type, and the other fields."""

    conditions: dict[str, Condition] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Stated:
    """One stated value; its identity tells a later statement from the one that was written."""

    value: Any


@dataclass(slots=True)
class _Entry:
    """What the committer knows of one object beyond the store."""

    uid: str
    conditions: dict[str, _Stated] = field(default_factory=dict)
    fields: dict[str, _Stated] = field(default_factory=dict)
    written: JsonObject | None = None  # the API server's answer, until the store shows it

    @property
    def pending(self) -> bool:
        return bool(self.conditions or self.fields)


class Committer:
    """Collects what stages state about objects and writes it, one write per object and window.

    Args:
        read: returns the informer store's object, None when it does not exist.
        write: applies a status and returns the stored object; raises ``Conflict``, ``Gone``, or
            anything else to be retried with backoff.
        roll_up: derives conditions from an object and all its conditions; pure.
        on_transition: told, after the write, of each condition whose status, reason or message
            changed: the stored object, the condition before (None when new) and now.
        metrics: counts the writes and watches the queue of pending objects.
        owned_conditions: by kind, the types that this manager owns, whichever process stated them.
        owned_fields: by kind, the status fields that it owns.
        window: seconds between the first report about an object and its write.
        writers: writes that may run at a time, on different objects.
        write_deadline: longest time of one write, seconds.
        backoff: delays after conflicts and failed writes, per object.
        expected: exceptions of ``write`` that need no traceback in the log.
        now: the wall clock, for ``lastTransitionTime``.
    """

    def __init__(
        self,
        *,
        read: Callable[[Key], JsonObject | None],
        write: Callable[[Key, JsonObject], Awaitable[JsonObject]],
        roll_up: RollUp,
        on_transition: Callable[[JsonObject, Condition | None, Condition], None],
        metrics: FlowMetrics,
        owned_conditions: Mapping[str, Collection[str]] | None = None,
        owned_fields: Mapping[str, Collection[str]] | None = None,
        window: float = 0.05,
        writers: int = 4,
        write_deadline: float = 30.0,
        backoff: Backoff | None = None,
        expected: tuple[type[Exception], ...] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._read = read
        self._write = write
        self._roll_up = roll_up
        self._on_transition = on_transition
        self._metrics = metrics
        self._owned_conditions = owned_conditions or {}
        self._owned_fields = owned_fields or {}
        self._window = window
        self._writers = writers
        self._write_deadline = write_deadline
        self._expected = expected
        self._now = now
        self._entries: dict[Key, _Entry] = {}
        self._condition_sources: dict[tuple[str, str], str] = {}
        self._field_sources: dict[tuple[str, str], str] = {}
        self._unwritten: set[Key] = set()
        self._all_written = asyncio.Event()
        # The queue's promises are the committer's: one write per object at a time, and backoff.
        self._queue: WorkQueue[Key] = WorkQueue(
            NAME, backoff=backoff or Backoff(0.05, 60), metrics=metrics
        )

    def report(self, key: Key, stage: str, report: Report) -> None:
        """Take what a stage states about an object; the write follows within the window.

        Args:
            key: the object.
            stage: the source of the report.
            report: conditions and fields; those without ``observed_generation`` speak of the
                generation that the store shows now.

        Raises:
            TwoSources: another stage states the same condition type or field of this kind.
            TypeError: a field is not JSON.
        """
        for condition in report.conditions:
            _claim(self._condition_sources, key.kind, condition.type, stage)
        for name in report.fields:
            _claim(self._field_sources, key.kind, name, stage)
        if not report.conditions and not report.fields:
            return
        # The JSON form is compared with the store's and cannot change under the writer.
        fields = {name: orjson.loads(orjson.dumps(v)) for name, v in report.fields.items()}
        obj, entry = self._look(key)
        if entry is None:
            entry = self._entries[key] = _Entry(uid_of(obj) if obj is not None else "")
        generation = generation_of(obj) or None if obj is not None else None
        for condition in report.conditions:
            entry.conditions[condition.type] = _Stated(with_generation(condition, generation))
        entry.fields.update({name: _Stated(value) for name, value in fields.items()})
        self._unwritten.add(key)
        if not self._queue.failures(key):  # else its retry is due, and takes this along
            self._queue.add_after(key, self._window)

    def view(self, key: Key) -> View:
        """Return the status of an object as it will be: the store's with all reports merged in.

        Read only; empty when the object does not exist.
        """
        obj, entry = self._look(key)
        if obj is None:
            return View()
        merged = self._merge(key, obj, entry or _Entry(""))
        conditions = {kind: condition_of(e) for kind, e in merged.conditions.items()}
        return View(conditions, merged.fields)

    def forget(self, key: Key) -> None:
        """Drop what is known and pending of an object that was deleted."""
        self._entries.pop(key, None)
        self._queue.forget(key)
        self._settle(key)

    async def run(self, hanging: HangingPasses | None = None) -> None:
        """Write until ``drain`` ends the writers.

        Args:
            hanging: names the writes that do not end.
        """
        try:
            await run_workers(
                name=NAME,
                queue=self._queue,
                stage=self._flush,
                count=self._writers,
                deadline=self._write_deadline,
                hand_over=lambda _queue, _key: None,
                report=lambda _key, _stage, _report: None,
                metrics=self._metrics,
                expected=self._expected,
                hanging=hanging,
            )
        finally:
            self._queue.shut_down(discard=True)  # what nobody works on is not shown as waiting

    async def drain(self, deadline: float) -> int:
        """Write everything pending at once, then end ``run``.

        Args:
            deadline: how long to go on, seconds.

        Returns:
            The number of objects whose status could not be written in that time.
        """
        for key in tuple(self._unwritten):
            self._queue.forget(key)
            self._queue.add(key)
        try:
            async with asyncio.timeout(deadline):
                while self._unwritten:
                    self._all_written.clear()
                    await self._all_written.wait()
        except TimeoutError:
            _log.warning("statuses left unwritten at stop", objects=len(self._unwritten))
        self._queue.shut_down(discard=True)
        return len(self._unwritten)

    async def _flush(self, key: Key) -> Outcome:
        """Write what is pending about one object."""
        obj, entry = self._look(key)
        if obj is None:
            self.forget(key)
        if obj is None or entry is None:
            return Done()
        if entry.pending:
            conditions, fields = dict(entry.conditions), dict(entry.fields)
            merged = self._merge(key, obj, entry)
            if merged.changed:
                try:
                    entry.written = await self._write(key, self._body(key, obj, merged))
                except Gone:
                    if self._entries.get(key) is entry:
                        self.forget(key)
                    return self._next(key)
                except Conflict:
                    return Again("the object changed meanwhile")
                self._announce(entry.written, merged)
            _drop_same(entry.conditions, conditions)
            _drop_same(entry.fields, fields)
        return self._next(key)

    def _next(self, key: Key) -> Outcome:
        """Say when an object that was just written needs the next look."""
        _, entry = self._look(key)
        if entry is None:
            return Done()
        if entry.pending:
            return Again("more was reported meanwhile", after=self._window)
        self._settle(key)
        if entry.written is not None:
            return Again("the store does not show the write yet", after=_UNSEEN_POLL)
        del self._entries[key]
        return Done()

    def _look(self, key: Key) -> tuple[JsonObject | None, _Entry | None]:
        """Return the object as it is known best, and what is known beyond the store.

        The object is the store's, or the answer to the last write while that is newer. What was
        stated about an object does not hold for another one of the same name.
        """
        obj, entry = self._read(key), self._entries.get(key)
        if obj is None or entry is None:
            return obj, entry
        uid = uid_of(obj)
        if entry.uid and entry.uid != uid:
            self.forget(key)
            return obj, None
        entry.uid = uid
        if entry.written is not None and not _shows(obj, entry.written):
            return entry.written, entry
        entry.written = None
        return obj, entry

    def _merge(self, key: Key, obj: JsonObject, entry: _Entry) -> Merged:
        merged = merge(
            obj,
            conditions={kind: stated.value for kind, stated in entry.conditions.items()},
            fields={name: stated.value for name, stated in entry.fields.items()},
            roll_up=self._roll_up,
            now=self._now().strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        for kind in merged.derived:
            _claim(self._condition_sources, key.kind, kind, NAME)
        return merged

    def _body(self, key: Key, obj: JsonObject, merged: Merged) -> JsonObject:
        conditions = {type_ for kind, type_ in self._condition_sources if kind == key.kind}
        fields = {name for kind, name in self._field_sources if kind == key.kind}
        return status_body(
            obj,
            merged,
            owned_conditions=conditions.union(self._owned_conditions.get(key.kind, ())),
            owned_fields=fields.union(self._owned_fields.get(key.kind, ())),
        )

    def _announce(self, obj: JsonObject, merged: Merged) -> None:
        for old, new in merged.transitions:
            try:
                self._on_transition(obj, old, new)
            except Exception:  # noqa: BLE001 - an event that fails must not undo a status
                _log.exception("a transition could not be announced", condition=new.type)

    def _settle(self, key: Key) -> None:
        self._unwritten.discard(key)
        if not self._unwritten:
            self._all_written.set()


def _claim(sources: dict[tuple[str, str], str], kind: str, name: str, source: str) -> None:
    """Note who states a condition type or field of a kind; refuse a second one."""
    owner = sources.setdefault((kind, name), source)
    if owner != source:
        raise TwoSources(
            f"{name} of {kind} is stated by {owner!r} and by {source!r}; each condition and field"
            " has one source"
        )


def _drop_same(pending: dict[str, _Stated], written: dict[str, _Stated]) -> None:
    """Drop from pending what was written and not stated anew since."""
    for name, stated in written.items():
        if pending.get(name) is stated:
            del pending[name]


def _shows(obj: JsonObject, written: JsonObject) -> bool:
    """Tell whether the store's object is at least as new as an answer to a write.

    Source: Kubernetes' resourceVersions of one kind compare as whole numbers.
    """
    seen, answered = obj["metadata"]["resourceVersion"], written["metadata"]["resourceVersion"]
    if seen.isdigit() and answered.isdigit():
        return int(seen) >= int(answered)
    return bool(seen == answered or obj.get("status") == written.get("status"))
