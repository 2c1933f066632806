"""Which act of listing and watching follows which: the rules, as a pure function.

Guarantees:
    ``decide`` depends on its arguments alone. No way leads back to an act without a pause, but for
    a watch that lasted, and once after an expired version.

Source: Kubernetes' rules for efficient detection of changes (resource versions, bookmarks,
streaming lists) and client-go's Reflector. A list in pages asks for the newest state: pages exist
for it alone, and one answer with everything would hold up the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from http import HTTPStatus

from controller.kube.apierror import ApiError

BACKOFF_BASE = 0.8  # seconds
BACKOFF_CAP = 30.0
RECONNECT_SECONDS = 1.0  # between tries while nobody listens there
RETRY_AFTER_MAX = 120.0
HEALTHY_SECONDS = 120.0  # an act that lasted so long starts the backoff anew
SHORT_SECONDS = 1.0
INTERNAL_ERRORS_MAX = 3  # in a row, before the list is read again


_NOT_READY = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)


class Phase(Enum):
    """What the reflector does next."""

    STREAM = auto()  # a watch that begins with all objects
    PAGES = auto()  # a list in pages, then a watch
    WATCH = auto()  # a watch from the last version


class End(Enum):
    """How an act ended."""

    LISTED = auto()  # a list in pages is complete
    CLOSED = auto()  # the watch ended or its connection was lost
    UNREACHABLE = auto()  # nobody listens there
    UNAVAILABLE = auto()  # too many requests, or not ready for them
    EXPIRED = auto()  # the version is too old
    AHEAD = auto()  # the API server has not seen the version yet
    UNSUPPORTED = auto()  # the API server has no streaming lists
    INTERNAL = auto()  # the API server's internal error, from the watch
    FAILED = auto()  # anything else


@dataclass(frozen=True, slots=True)
class State:
    """All that the reflector remembers between two acts."""

    phase: Phase = Phase.STREAM
    version: str = ""  # resource version last seen; empty before the first list
    version_lost: bool = False  # the next list asks for the newest state
    streaming: bool = True  # the API server has streaming lists, as far as known
    failures: int = 0  # since the last healthy time; the pause grows with it
    internal_errors: int = 0  # in a row

    @property
    def list_version(self) -> str:
        """The resource version that a streaming list must reach at least."""
        return "" if self.version_lost else self.version


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an act ended, and what it brought."""

    end: End
    version: str = ""  # last one seen; empty when none was
    listed: bool = False  # a whole list was handed over
    events: int = 0
    seconds: float = 0.0
    retry_after: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """The state after an act, and the pause (seconds, without jitter) before the next one."""

    state: State
    pause: float = 0.0


def decide(state: State, outcome: Outcome) -> Step:
    """Return what to do after an act.

    Args:
        state: before the act; its phase is the act.
        outcome: how it ended.

    Returns:
        The next state and the pause before it.

    Source: client-go's Reflector, rules on resource versions and relisting.
    """
    if outcome.version:
        state = replace(state, version=outcome.version)
    if outcome.listed:
        state = replace(state, phase=Phase.WATCH, version_lost=False, internal_errors=0)
    if outcome.seconds >= HEALTHY_SECONDS:
        state = replace(state, failures=0, internal_errors=0)
    if state.phase is Phase.WATCH:
        return _after_watch(state, outcome)
    return _after_list(state, outcome)


def _after_watch(state: State, outcome: Outcome) -> Step:
    relist = replace(state, phase=Phase.STREAM if state.streaming else Phase.PAGES)
    match outcome.end:
        case End.LISTED:
            return Step(state)
        case End.CLOSED:
            short = outcome.events == 0 and outcome.seconds < SHORT_SECONDS
            return _paused(state, outcome) if short else Step(replace(state, internal_errors=0))
        case End.UNREACHABLE:
            return Step(state, RECONNECT_SECONDS)
        case End.UNAVAILABLE:
            return _paused(state, outcome)
        case End.INTERNAL if state.internal_errors < INTERNAL_ERRORS_MAX:
            return _paused(replace(state, internal_errors=state.internal_errors + 1), outcome)
        case End.EXPIRED:
            return _hurried(relist, outcome)
        case _:
            return _paused(replace(relist, internal_errors=0), outcome)


def _after_list(state: State, outcome: Outcome) -> Step:
    match outcome.end:
        case End.EXPIRED | End.AHEAD:
            return _hurried(replace(state, version_lost=True), outcome)
        case End.UNSUPPORTED if state.phase is Phase.STREAM:
            return Step(replace(state, phase=Phase.PAGES, streaming=False))
        case End.UNREACHABLE:
            return Step(state, RECONNECT_SECONDS)
        case End.UNAVAILABLE:
            return _paused(state, outcome)
        case End.CLOSED if state.failures == 0:
            return _paused(state, outcome)
        case _ if state.phase is Phase.STREAM:
            # Whatever a streaming list stumbles over, a plain one may still be answered.
            return _paused(replace(state, phase=Phase.PAGES), outcome)
        case _:
            phase = Phase.STREAM if state.streaming else Phase.PAGES
            return _paused(replace(state, phase=phase), outcome)


def _paused(state: State, outcome: Outcome) -> Step:
    """Go on after a pause that grows with each failure."""
    pause = min(BACKOFF_CAP, BACKOFF_BASE * 2.0 ** min(state.failures, 16))
    failed = replace(state, failures=state.failures + 1)
    return Step(failed, max(pause, min(outcome.retry_after or 0.0, RETRY_AFTER_MAX)))


def _hurried(state: State, outcome: Outcome) -> Step:
    """Go on at once the first time, then after growing pauses."""
    if state.failures == 0:
        return Step(replace(state, failures=1))
    return _paused(state, outcome)


def end_of(error: ApiError, *, streaming_list: bool, in_stream: bool) -> End:
    """Tell what an error means for the act that it ended.

    Args:
        error: an HTTP status, a lost connection or an ERROR event.
        streaming_list: the act is a streaming list whose objects are not complete yet.
        in_stream: it came after the answer had begun.
    """
    if error.expired:
        return End.EXPIRED
    if error.too_large_version:
        return End.AHEAD
    if error.status == 0 and not in_stream:
        return End.UNREACHABLE if error.retryable else End.FAILED
    if error.status == 0:
        return End.CLOSED if error.retryable else End.FAILED
    if error.status in _NOT_READY and not in_stream:
        return End.UNAVAILABLE
    if in_stream and error.reason == "InternalError":
        return End.INTERNAL
    if streaming_list and error.invalid and not in_stream:
        return End.UNSUPPORTED
    return End.FAILED
