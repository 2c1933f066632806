"""How fast events of a watch and items of a list are decoded and applied, in time of CPU.

``measure`` returns the figures; run the module to print them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import multiprocessing
import socket
import time
from collections.abc import Iterator
from typing import Any

import orjson

from controller.kube.informer import Change, Informer
from controller.kube.reading import WatchReader
from controller.kube.requests import Selection
from controller.kube.stream import LineSplitter, ListSplitter
from controller.model.objects import JsonObject, Resource
from tests.kube.watched import connected

WIDGET = Resource("example.org", "v1", "widgets", "Widget", namespaced=True)
OBJECTS = 2_000
EVENTS = 40_000
LISTED = 50_000
CHUNK = 256 * 1024  # bytes, as they come from the network


def widget(number: int, version: int) -> JsonObject:
    """Return an object of 2 KB."""
    metadata = {
        "name": f"widget-{number}",
        "namespace": "default",
        "uid": f"6f1f4a0e-1111-2222-3333-{number:012}",
        "resourceVersion": str(version),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {f"app.kubernetes.io/label-{n}": f"value-{n}" for n in range(6)},
        "annotations": {f"example.org/annotation-{n}": "x" * 40 for n in range(5)},
    }
    spec = {f"field{n}": {"a": n, "b": "text {} " * 3, "c": [1, {"d": "e"}]} for n in range(9)}
    conditions = [
        {"type": f"T{n}", "status": "True", "reason": "Ok", "message": "all is as it was asked for"}
        for n in range(4)
    ]
    value = {"apiVersion": "example.org/v1", "kind": "Widget", "metadata": metadata, "spec": spec}
    return {**value, "status": {"conditions": conditions}}


def event(number: int, version: int) -> bytes:
    kind = "ADDED" if version <= OBJECTS else "MODIFIED"
    return orjson.dumps({"type": kind, "object": widget(number, version)}) + b"\n"


def stream() -> bytes:
    """Return the events of a watch, as many bytes as they take."""
    return b"".join(event(version % OBJECTS, version) for version in range(1, EVENTS + 1))


def chunks(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), CHUNK):
        yield data[at : at + CHUNK]


# ---- from memory ---------------------------------------------------------------------------------


def bare(data: bytes) -> float:
    """Return events a second of cutting lines and decoding them, and nothing else."""
    splitter, began = LineSplitter(), time.process_time()
    for chunk in chunks(data):
        for line in splitter.feed(chunk):
            orjson.loads(line)
    return EVENTS / (time.process_time() - began)


async def applied(data: bytes) -> float:
    """Return events a second through the reader into a store with a handler."""
    client: Any = None
    informer, seen = Informer(client, WIDGET), 0

    def handler(change: Change) -> None:
        nonlocal seen
        seen += 1

    informer.add_handler(handler)
    await informer.replace({}, "0")
    reader = WatchReader(informer, Selection(WIDGET), listing=False, ordered=True)
    splitter, began = LineSplitter(), time.process_time()
    for chunk in chunks(data):
        for line in splitter.feed(chunk):
            reader.take(line)
    seconds = time.process_time() - began
    assert (seen, len(informer.store)) == (EVENTS, OBJECTS)
    return EVENTS / seconds


# ---- from another process ------------------------------------------------------------------------


def serve(listener: socket.socket, bodies: dict[str, bytes], rest: float) -> None:
    """Answer each connection's first request with a body, as fast as it is taken."""
    while True:
        connection, _ = listener.accept()
        with connection:
            head = connection.recv(65536).decode()
            body = bodies["list" if "watch=" not in head else "watch"]
            refused = "sendInitialEvents" in head
            status = "422 No" if refused else "200 OK"
            start = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n"
            with contextlib.suppress(OSError):  # the other end leaves when it has all
                connection.sendall(f"{start}\r\n".encode())
                if not refused:
                    connection.sendall(body)
                    if "watch=" in head:
                        time.sleep(rest)


@contextlib.contextmanager
def sender(**bodies: bytes) -> Iterator[str]:
    """Serve a list and a watch from a process of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        context = multiprocessing.get_context("fork")
        process = context.Process(target=serve, args=(listener, bodies, 3600.0), daemon=True)
        process.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            process.terminate()
            process.join()


class Lag:
    """The longest time that the event loop was held, in seconds of CPU: others may be at work."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            self.longest = max(self.longest, time.thread_time() - began)


def envelope(items: bytes) -> bytes:
    return b'{"apiVersion":"example.org/v1","items":[%s],"kind":"WidgetList","metadata":%s}\n' % (
        items,
        b'{"resourceVersion":"1"}',
    )


async def from_socket(data: bytes, listed: bytes, count: int, until: int) -> tuple[float, float]:
    """Return (seconds of CPU, longest hold of the loop in seconds) of a list and a watch."""
    lag = Lag()
    with sender(list=listed, watch=data) as url:
        async with connected(url) as client:
            informer, done = Informer(client, WIDGET), asyncio.Event()

            def handler(change: Change) -> None:
                if change.new and change.new["metadata"]["resourceVersion"] == str(until):
                    done.set()

            informer.add_handler(handler)
            began = time.process_time()
            tasks = [asyncio.ensure_future(work) for work in (informer.run(), lag.run())]
            await done.wait()
            await informer.wait_synced()
            seconds = time.process_time() - began
            assert len(informer.store) == count
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return seconds, lag.longest


async def peer(data: bytes) -> float:
    """Return events a second of CPU of kubernetes_asyncio's watch on raw objects."""
    from kubernetes_asyncio import watch
    from kubernetes_asyncio.client import ApiClient, Configuration, CustomObjectsApi

    configuration = Configuration()
    with sender(list=b"", watch=data) as url:
        configuration.host = url
        async with ApiClient(configuration) as api, watch.Watch() as stream_:
            found = stream_.stream(
                CustomObjectsApi(api).list_cluster_custom_object, "example.org", "v1", "widgets"
            )
            began, seen = time.process_time(), 0
            async for _ in found:
                seen += 1
                if seen == EVENTS:
                    break
            return EVENTS / (time.process_time() - began)


# ---- lists ---------------------------------------------------------------------------------------


def cut_list(listed: bytes) -> float:
    """Return items a second of cutting and decoding a list."""
    splitter, began, seen = ListSplitter(), time.process_time(), 0
    for chunk in chunks(listed):
        for item in splitter.feed(chunk):
            orjson.loads(item)
            seen += 1
    return seen / (time.process_time() - began)


def measure() -> dict[str, float]:
    """Return events and items a second, and the longest holds of the loop in milliseconds."""
    data = stream()
    listed = envelope(b",".join(orjson.dumps(widget(n, n + 1)) for n in range(LISTED)))
    figures = {
        "bytes of an event": len(data) / EVENTS,
        "events/s split and decoded": bare(data),
        "events/s through reader and informer": asyncio.run(applied(data)),
        "items/s of a list, cut and decoded": cut_list(listed),
    }
    seconds, held = asyncio.run(from_socket(data, envelope(b""), OBJECTS, EVENTS))
    figures["events/s of CPU through a socket"] = EVENTS / seconds
    figures["loop held by a watch, ms"] = held * 1000
    figures["events/s of CPU, kubernetes_asyncio"] = asyncio.run(peer(data))
    del data
    usual = gc.get_threshold()
    for thresholds in (usual, (10_000, 10, 1_000), (0, 0, 0)):
        gc.set_threshold(*thresholds)
        seconds, held = asyncio.run(from_socket(b"", listed, LISTED, LISTED))
        gc.set_threshold(*usual)
        gc.collect()
        name = f"a list of {LISTED}, garbage collected at {thresholds}"
        figures[f"s of CPU for {name}"] = seconds
        figures[f"loop held by {name}, ms"] = held * 1000
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))  # noqa: T201 - it shows what it measures
