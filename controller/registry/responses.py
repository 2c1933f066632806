"""What an answer asks of its reader: to go elsewhere, and how its connection is given back.

Source: RFC 9110 (redirects).
"""

from __future__ import annotations

import asyncio
import contextlib

import httpx

from controller.registry.failures import RegistryUnavailable
from controller.registry.outcome import LOW_LEVEL
from controller.registry.wire import Ask, joined

REDIRECTS = frozenset({301, 302, 303, 307, 308})
REDIRECTS_WITH_BODY = frozenset({307, 308})
DRAINED_BYTES = 16 * 1024
DRAIN_SECONDS = 1.0
NO_RANGE = 416


async def let_go(response: httpx.Response) -> None:
    """Give a connection back; one whose answer ends soon can be used again, others are closed."""
    length = response.headers.get("Content-Length", "")
    is_short = response.request.method == "HEAD" or (
        length.isdecimal() and int(length) <= DRAINED_BYTES
    )
    # Some registries announce more than they send with 416.
    if is_short and not response.is_stream_consumed and response.status_code != NO_RANGE:
        with contextlib.suppress(TimeoutError, *LOW_LEVEL):
            async with asyncio.timeout(DRAIN_SECONDS):
                async for _ in response.aiter_raw():
                    pass
    await response.aclose()


def redirect_of(response: httpx.Response, url: httpx.URL, ask: Ask) -> httpx.URL | None:
    """Return where an answer redirects to, None when it does not.

    Raises:
        RegistryUnavailable: the target is no URL.
    """
    allowed = REDIRECTS if ask.method in {"GET", "HEAD"} else REDIRECTS_WITH_BODY
    location = response.headers.get("Location")
    if response.status_code not in allowed or not location or not ask.follow:
        return None
    target = joined(url, location)
    if target is None:
        raise RegistryUnavailable(f"{url.host} redirects to something that is no URL")
    return target.copy_with(fragment=None)
