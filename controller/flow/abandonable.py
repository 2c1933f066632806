"""Abandonable: a coroutine that is awaited as usual, and can be left at any of its waits.

Guarantees: until it is abandoned, results, exceptions and cancellation are those of the coroutine,
a result and a cancellation at most one round of the event loop later than without it;
once abandoned it runs no further statement but those of its ``finally`` blocks, and whoever awaits
it goes on in the next round of the event loop.
Assumptions: asyncio; the coroutine waits for futures and tasks of the running loop.

A task cannot be ended from outside: cancellation is a request, and a coroutine that swallows it
keeps its task, and the task group above it, for as long as it likes. So the coroutine is stepped
here, between its task and the future it waits for, and each wait can be broken off here.
Where next: ``controller.flow.worker`` runs stages in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_CLOSE_TRIES = 8  # nested ``finally`` blocks that wait


class Abandonable(Generic[T]):
    """Awaits a coroutine; ``abandon`` ends the wait whatever the coroutine does.

    Args:
        coroutine: not started yet; to be awaited once.

    Source: asyncio's Task, whose rules for one step and for ``cancel`` are followed.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._wake_up: asyncio.Future[None] | None = None
        self.abandoned = False

    def abandon(self) -> None:
        """Let the wait end with ``CancelledError``, and close the coroutine where it stands.

        Closing runs its ``finally`` blocks up to their next wait, and so on, a bounded number of
        times. Tasks that the coroutine started and that ignore their cancellation are not reached.
        """
        self.abandoned = True
        if self._wake_up is not None:
            _wake(self._wake_up)

    def __await__(self) -> Generator[Any, None, T]:
        cancelled: asyncio.CancelledError | None = None
        try:
            while True:
                if self.abandoned:
                    raise asyncio.CancelledError
                try:
                    if cancelled is None:
                        waited = self._coroutine.send(None)
                    else:
                        waited = self._coroutine.throw(cancelled)
                except StopIteration as end:
                    result: T = end.value
                    return result
                cancelled = yield from self._wait(waited)
        finally:
            self._close()

    def _wait(
        self, waited: asyncio.Future[Any] | None
    ) -> Generator[Any, None, asyncio.CancelledError | None]:
        """Wait for what the coroutine waits for; return what is to be thrown into it."""
        if waited is None:  # asyncio.sleep(0): one round of the loop
            try:
                yield
            except asyncio.CancelledError as error:
                return error
            return None
        waited._asyncio_future_blocking = False  # noqa: SLF001 - says that the step was taken
        while not (waited.done() or self.abandoned):
            self._wake_up = wake_up = waited.get_loop().create_future()

            def wake(_: asyncio.Future[Any], wake_up: asyncio.Future[None] = wake_up) -> None:
                _wake(wake_up)

            waited.add_done_callback(wake)
            try:
                yield from wake_up
            except asyncio.CancelledError as error:
                # With its message: libraries know their own time limits by it.
                if not waited.cancel(*error.args):
                    return error
            finally:
                waited.remove_done_callback(wake)
                self._wake_up = None
        return None

    def _close(self) -> None:
        """End the coroutine; no effect on one that has ended."""
        for _ in range(_CLOSE_TRIES):
            try:
                self._coroutine.close()
            except RuntimeError:  # it waits again, in a finally block: that wait is next
                continue
            except (Exception, asyncio.CancelledError):  # noqa: BLE001 - it ended, if badly
                return
            return


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
