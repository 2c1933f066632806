"""Which act of listing and watching follows which: the rules, as a pure function.

Guarantees:
    All functions depend on their arguments alone. No way leads back to an act without a pause, but
    for a watch that lasted, and once after an expired version. Lists never ask for a state older
    than one that was seen.

Source: Kubernetes' rules for efficient detection of changes (resource versions, bookmarks,
streaming lists, lists in chunks) and client-go's Reflector and pager.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from http import HTTPStatus

from controller.kube.apierror import ApiError

BACKOFF_BASE = 0.8  # seconds
BACKOFF_CAP = 30.0
RECONNECT_SECONDS = 0.8  # between tries while nobody listens there, or watches end soon
RETRY_AFTER_MAX = 120.0
HEALTHY_SECONDS = 120.0  # a watch that lasted so long starts the backoff anew
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
    PAGES = auto()  # a plain list, in pages or whole, then a watch
    WATCH = auto()  # a watch from the last version


class End(Enum):
    """How an act ended."""

    LISTED = auto()  # a plain list is complete
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
    paged: bool = False  # the first plain list came in pages: the API server keeps no cache
    failures: int = 0  # since the last healthy time; the pause grows with it
    internal_errors: int = 0  # in a row

    @property
    def list_version(self) -> str:
        """The resource version that a streaming list must reach at least."""
        return "" if self.version_lost else self.version

    def first_page(self) -> Page:
        """Return how a plain list begins.

        The first one takes whatever the API server has at hand. A list that must reach a version
        is asked for whole: the API server answers it from its cache only without a limit.
        """
        version = "" if self.version_lost else self.version or "0"
        return Page(version, paged=self.paged or version in {"", "0"})


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a plain list, or all of it."""

    version: str  # that the list must reach; empty for the newest, "0" for any
    paged: bool  # with a limit
    token: str = ""  # of the page before; stands for the version

    def after(self, token: str) -> Page:
        """Return the page that a continue token leads to."""
        return replace(self, token=token)

    def whole(self) -> Page:
        """Return the same list without pages, for one whose continue token expired."""
        return replace(self, paged=False, token="")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an act ended, and what it brought."""

    end: End
    version: str = ""  # last one seen; empty when none was
    listed: bool = False  # a whole list was handed over
    paged: bool = False  # the list came in more than one page
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
    if outcome.listed:
        paged = state.paged or (outcome.paged and state.first_page().version == "0")
        state = replace(
            state, phase=Phase.WATCH, version_lost=False, internal_errors=0, paged=paged
        )
    if outcome.version:
        state = replace(state, version=outcome.version)
    if state.phase is Phase.WATCH:
        if outcome.seconds >= HEALTHY_SECONDS:
            state = replace(state, failures=0, internal_errors=0)
        return _after_watch(state, outcome)
    return _after_list(state, outcome)


def _after_watch(state: State, outcome: Outcome) -> Step:
    relist = replace(state, phase=Phase.STREAM if state.streaming else Phase.PAGES)
    match outcome.end:
        case End.LISTED:
            return Step(state)
        case End.CLOSED:
            state = replace(state, internal_errors=0)
            if outcome.seconds >= SHORT_SECONDS:
                return Step(state)
            if outcome.events or outcome.error:  # it works in between, or the network does not
                return Step(state, RECONNECT_SECONDS)
            return _paused(state, outcome)
        case End.UNREACHABLE:
            return Step(state, RECONNECT_SECONDS)
        case End.UNAVAILABLE:
            return _paused(state, outcome)
        case End.INTERNAL if state.internal_errors < INTERNAL_ERRORS_MAX:
            return _paused(replace(state, internal_errors=state.internal_errors + 1), outcome)
        case End.EXPIRED if state.failures == 0:
            return Step(replace(relist, failures=1))
        case _:
            return _paused(replace(relist, internal_errors=0), outcome)


def _after_list(state: State, outcome: Outcome) -> Step:
    match outcome.end:
        case End.EXPIRED | End.AHEAD if not state.version_lost:
            return Step(replace(state, version_lost=True))
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
    if error.status == 0:
        if not in_stream and error.reason == "Unreachable":
            return End.UNREACHABLE
        return End.CLOSED if error.retryable else End.FAILED
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        return End.UNAVAILABLE
    if in_stream:
        return End.INTERNAL if error.reason == "InternalError" else End.FAILED
    if streaming_list:
        return End.UNSUPPORTED if error.invalid else End.FAILED
    return End.UNAVAILABLE if error.status in _NOT_READY else End.FAILED
