"""List and watch of one kind: acts as ``watchstate`` decides, and delivers.

Guarantees:
    The receiver is given whole lists and single changes in the API server's order, and never a
    state older than one it has seen. A broken watch goes on where it ended; only an expired
    version or an error that the watch itself reports leads to a new list. What is no object of the
    kind is skipped. A peer that sends nothing for 130 s is given up, and so is a list that is not
    complete after 120 s and a watch that outlasts its time. Nothing but cancellation ends it.
Assumptions:
    The receiver takes changes without waiting; whole lists it may take in slices.

Source: client-go's Reflector.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog

from controller.kube import requests
from controller.kube.apierror import ApiError
from controller.kube.client import KubeClient
from controller.kube.reading import Listing, Pacer, Receiver, WatchReader
from controller.kube.requests import Selection
from controller.kube.watchstate import End, Outcome, Phase, State, decide, end_of
from controller.model.objects import JsonObject

__all__ = ["Pacer", "Receiver", "Reflector"]

WATCH_SECONDS = (300, 600)  # the API server ends a watch after a random time in between
WATCH_GRACE = 30.0  # seconds after which a watch that the API server should have ended is left
OPEN_DEADLINE = 40.0  # seconds until a watch's answer begins
LIST_DEADLINE = 120.0  # seconds for all objects, or for a page of them
TOLD_MAX = 20  # different errors that are remembered as logged

_log = structlog.get_logger("controller.kube")


class Reflector:
    """Keeps a receiver up to date with one kind.

    Args:
        client: the API server.
        selection: which objects, and how much of them.
        receiver: takes lists and changes.
        sleep: waits; for tests.

    Attributes:
        served: False while the API server answers that it does not serve the kind.
    """

    def __init__(
        self,
        client: KubeClient,
        selection: Selection,
        receiver: Receiver,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._selection = selection
        self._receiver = receiver
        self._sleep = sleep
        self._told: set[str] = set()
        self.served = True
        self._log = _log.bind(kind=selection.resource.kind)
        self.state = State()

    async def run(self) -> None:
        """List and watch until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                outcome = await (self._list() if self.state.phase is Phase.PAGES else self._watch())
            except Exception as error:  # noqa: BLE001 - one odd answer must not end the watch
                outcome = self._unexpected(error)
            step = decide(self.state, replace(outcome, seconds=loop.time() - began))
            self._tell(outcome, step.pause)
            self.state = step.state
            if step.pause:
                await self._sleep(step.pause * (1 + random.random()))  # noqa: S311 - jitter

    def _unexpected(self, error: Exception) -> Outcome:
        self._log.exception("watch failed unexpectedly")
        return Outcome(End.FAILED, error=repr(error))

    def _tell(self, outcome: Outcome, pause: float) -> None:
        """Log an error once, however often it comes back."""
        if outcome.end is End.UNREACHABLE:
            return  # said once for all watches, where connections are made
        if outcome.error and outcome.error not in self._told:
            report = self._log.warning if pause else self._log.info
            report(
                "watch interrupted",
                end=outcome.end.name.lower(),
                act=self.state.phase.name.lower(),
                pause=round(pause, 1),
                error=outcome.error,
            )
            if len(self._told) >= TOLD_MAX:
                self._told.clear()
            self._told.add(outcome.error)

    def _works(self) -> None:
        self.served = True
        if self._told:
            self._log.info("watch works again")
            self._told.clear()

    async def _list(self) -> Outcome:
        """Read a plain list and hand it over."""
        objects: dict[tuple[str, str], JsonObject] = {}
        page, paged = self.state.first_page(), False
        while True:
            reading = Listing(self._receiver, self._selection, objects)
            try:
                async with asyncio.timeout(LIST_DEADLINE):
                    metadata = await reading.read(self._client, page)
            except TimeoutError:
                return Outcome(
                    End.CLOSED, error=f"a list was not complete in {LIST_DEADLINE:.0f} s"
                )
            except ApiError as error:
                self.served = not error.not_found
                if error.expired and page.token:
                    page = page.whole()
                    objects.clear()
                    continue
                end = end_of(error, streaming_list=False, in_stream=reading.opened)
                return Outcome(end, retry_after=error.retry_after, error=str(error))
            token = metadata.get("continue")
            if not token:
                break
            if token == page.token:  # a cache in between answers: it would never end
                return Outcome(End.FAILED, error="the next page of a list is the same again")
            page, paged = page.after(token), True
        self._works()
        version = metadata.get("resourceVersion", "")
        await self._receiver.replace(objects, version)
        return Outcome(End.LISTED, version=version, listed=True, paged=paged)

    async def _watch(self) -> Outcome:
        """Watch until the stream ends; a streaming list collects all objects first."""
        listing = self.state.phase is Phase.STREAM
        version = self.state.list_version if listing else self.state.version
        seconds = random.randint(*WATCH_SECONDS)  # noqa: S311 - spreads the load
        request = requests.watch(
            self._selection,
            resource_version=version,
            timeout_seconds=seconds,
            send_initial_events=listing,
        )
        reader = WatchReader(
            self._receiver, self._selection, listing=listing, ordered=version not in {"", "0"}
        )
        loop, opened = asyncio.get_running_loop(), False
        end = loop.time() + seconds + WATCH_GRACE
        try:
            async with asyncio.timeout(OPEN_DEADLINE) as deadline:
                async with self._client.stream(request) as lines:
                    opened = True
                    self._works()
                    self._receiver.progress(None)
                    deadline.reschedule(loop.time() + LIST_DEADLINE if listing else end)
                    pacer = Pacer()
                    async for line in lines:
                        if reader.take(line):
                            deadline.reschedule(end)
                            await reader.deliver()
                        if pacer.due:
                            await pacer.pause()
        except TimeoutError:
            what = "did not bring all objects" if reader.listing else "did not end"
            lost = ApiError(status=0, reason="Timeout", message=f"the watch {what} in time")
            return reader.outcome(End.CLOSED, lost)
        except ApiError as error:
            self.served = not error.not_found
            in_list = reader.listing
            return reader.outcome(end_of(error, streaming_list=in_list, in_stream=opened), error)
        except Exception as error:  # noqa: BLE001 - what has been seen must not be forgotten
            return replace(self._unexpected(error), version=reader.version, listed=reader.listed)
        return reader.outcome(End.CLOSED)
