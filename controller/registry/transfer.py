"""A blob from its registry to a file, however often the way there breaks.

What came is kept while the transfer lasts; the next try asks for the rest. The digest is taken
over all bytes, whichever answers they came in.

Source: RFC 9110 section 14 (range requests, ``If-Range``); the OCI distribution specification
("Pulling blobs").
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from controller.registry import download
from controller.registry.authorized import Authorized
from controller.registry.credentials import Keychain
from controller.registry.failures import (
    IntegrityError,
    NotFound,
    RegistryError,
    RegistryUnavailable,
    UnsupportedMedia,
)
from controller.registry.media import Descriptor
from controller.registry.outcome import next_delay
from controller.registry.reference import Reference
from controller.registry.transport import Transport
from controller.registry.wire import Answer, Ask, Limits

PARTIAL, NO_RANGE = 206, 416
ANSWERS = frozenset({200, PARTIAL, NO_RANGE})
ONCE_MORE = 8 * 1024 * 1024  # bytes that may be thrown away more than once
FOREIGN = ("nondistributable", "foreign")


class RangeRefused(RegistryUnavailable):
    """The registry does not give the rest of a blob; all of it must be asked for."""


@dataclass(slots=True)
class Course:
    """How a transfer goes, and whether it is worth going on. Pure.

    Attributes:
        limits: tries and resumes.
        attempt: tries without progress, the current one included.
        resumes: how often the transfer went on after progress.
        tries: all tries.
        refusals: how often the registry gave everything instead of the rest.
    """

    limits: Limits
    attempt: int = 1
    resumes: int = 0
    tries: int = 1
    refusals: int = 0

    def next_pause(self, error: RegistryError, gained: int, jitter: float) -> float | None:
        """Return the seconds until the next try after a failure, None when there is none.

        Args:
            error: of the try.
            gained: bytes that it brought.
            jitter: between 0 and 1.
        """
        self.tries += 1
        if isinstance(error, RangeRefused):
            self.refusals += 1
            return 0.0 if self.refusals <= 1 else None
        moved = gained >= self.limits.resume_bytes and not isinstance(error, download.Stalled)
        if moved and error.transient and not isinstance(error, IntegrityError):
            self.resumes += 1
            self.attempt = 1
            return next_delay(error, 1, self.limits, jitter) if self._may_resume else None
        pause = next_delay(error, self.attempt, self.limits, jitter)
        self.attempt += 1
        return pause

    @property
    def _may_resume(self) -> bool:
        return self.resumes <= self.limits.resumes


class Downloads:
    """Fetches blobs.

    Args:
        transport: connections and limits.
        authorized: sends the requests.
    """

    def __init__(self, transport: Transport, authorized: Authorized) -> None:
        self._transport = transport
        self._authorized = authorized

    async def blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        keychain: Keychain,
        destination: Path,
    ) -> None:
        """Write a blob to a file; see ``RegistryClient.download``."""
        download.check_declared(descriptor, self._transport.limits)
        writer = download.BlobWriter(descriptor, destination)
        if descriptor.size == 0:
            await download.write_empty(writer)
            return
        transfer = _Transfer(self._transport, self._authorized, descriptor, writer)
        try:
            await transfer.run(reference, keychain)
        except RegistryError as error:
            raise named(error, descriptor, writer.size).about(reference)  # noqa: B904 - the same
        finally:
            await download.discard(writer)


class _Transfer:
    """One blob on its way."""

    def __init__(
        self,
        transport: Transport,
        authorized: Authorized,
        descriptor: Descriptor,
        writer: download.BlobWriter,
    ) -> None:
        self._transport = transport
        self._authorized = authorized
        self._descriptor = descriptor
        self._writer = writer
        self._course = Course(transport.limits)
        self._left = download.blob_seconds(descriptor.size, transport.limits)
        self._tag = ""
        self._whole = True  # nothing came yet that could be continued
        self._gives_parts = True

    async def run(self, reference: Reference, keychain: Keychain) -> None:
        """Try until the file is there.

        Raises:
            RegistryError: the last failure.
        """
        while True:
            before = 0 if self._whole else self._writer.size
            try:
                await self._once(reference, keychain)
                return
            except RegistryError as error:
                gained = self._writer.size - before if self._gives_parts else 0
                if isinstance(error, IntegrityError | RangeRefused):
                    self._whole = True
                self._gives_parts &= not isinstance(error, RangeRefused)
                jitter = random.random()  # noqa: S311 - jitter
                pause = self._course.next_pause(error, gained, jitter)
                if pause is None or self._left <= 0:
                    raise _final(error, self._course.tries - 1) from error.__cause__
            await self._transport.sleep(pause)

    async def _once(self, reference: Reference, keychain: Keychain) -> None:
        target = f"/v2/{reference.repository}/blobs/{self._descriptor.digest}"
        ask = Ask("blob_get", "GET", target, {"Accept": "*/*", **self._range()})
        await self._authorized.call(
            reference,
            ask,
            keychain,
            self._read,
            accept=ANSWERS if "Range" in ask.headers else {200},
            seconds=self._left,
            again=False,
        )

    def _range(self) -> dict[str, str]:
        """Return the headers that ask for what is missing, none when all of it is."""
        if (
            self._whole
            or not self._gives_parts
            or not 0 < self._writer.size < self._descriptor.size
        ):
            return {}
        tag = {"If-Range": self._tag} if self._tag else {}
        return {"Range": f"bytes={self._writer.size}-", **tag}

    async def _read(self, answer: Answer) -> None:
        writer, size, limits = self._writer, self._descriptor.size, self._transport.limits
        if answer.status == NO_RANGE:
            raise RangeRefused(f"{answer.url.host} gives no part of the layer", status=NO_RANGE)
        if answer.status == PARTIAL:
            fits = download.range_fits(answer.header("Content-Range"), start=writer.size, size=size)
            if not fits or answer.header("Content-Encoding").lower() not in ("", "identity"):
                raise RangeRefused(f"{answer.url.host} gives another part of the layer than asked")
        elif not self._whole and writer.size >= ONCE_MORE:
            self._course.refusals += 1
            if self._course.refusals > 1:
                raise RangeRefused(f"{answer.url.host} starts the layer anew each time")
        if answer.status != PARTIAL:
            self._whole = bool(answer.header("Content-Encoding"))
            self._tag = download.strong_tag(answer)
        clock = self._transport.clock
        started = clock()
        try:
            await download.receive(answer, self._descriptor, writer, limits=limits, clock=clock)
        finally:
            self._left -= clock() - started


def named(error: RegistryError, descriptor: Descriptor, received: int) -> RegistryError:
    """Return an error that names the layer, and how much of it came."""
    if isinstance(error, NotFound):
        if any(word in descriptor.media_type for word in FOREIGN):
            return UnsupportedMedia(
                f"foreign layers are not allowed: the registry does not have {descriptor.digest}",
                remedy="push the package with all of its layers",
            )
        error.cause = f"layer {descriptor.digest} is missing in the registry: {error.cause}"
    elif isinstance(error, RegistryUnavailable) and received:
        got = f"got {received} of {descriptor.size} bytes"
        about = "" if descriptor.digest in error.cause else f"layer {descriptor.digest}: "
        error.cause = f"{about}{got}: {error.cause}"
    return error


def _final(error: RegistryError, tries: int) -> RegistryError:
    """Return a failure that is not tried again, with the number of tries in its text."""
    if tries > 1:
        error.cause = f"{error.cause} (after {tries} attempts)"
    error.transient = False
    return error
