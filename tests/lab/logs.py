"""Logs: what the API server's audit log and the registry's access log tell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ACCESS = re.compile(
    r'^\S+ \S+ \S+ \[(?P<time>[^\]]+)\] "(?P<method>\S+) (?P<path>\S+) [^"]*" '
    r'(?P<status>\d+) (?P<size>\d+|-) "[^"]*" "(?P<agent>[^"]*)"'
)


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment in the logs: how many bytes each of them had."""

    audit: int = 0
    access: int = 0


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One request to the API server.

    ``resource`` is ``group/resource`` (the resource alone in the core group), ``code`` the HTTP
    status; ``raw`` the whole event.
    """

    user: str
    agent: str
    verb: str
    uri: str
    stage: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    raw: dict[str, Any]

    @property
    def writes(self) -> bool:
        """Whether the request could change something."""
        return self.verb not in {"get", "list", "watch", "head", "options"}


@dataclass(frozen=True, slots=True)
class RegistryRequest:
    """One request to the registry; ``size`` is the length of the answer in bytes."""

    time: str
    method: str
    path: str
    status: int
    size: int
    agent: str


def whole_lines(path: Path, offset: int) -> Iterator[bytes]:
    """Read the complete lines of a log from an offset on; none when there is no log yet."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            for line in stream:
                if line.endswith(b"\n"):
                    yield line
    except FileNotFoundError:
        return


def audit_events(path: Path, offset: int = 0) -> Iterator[AuditEvent]:
    """Read the requests in an audit log from an offset on, in the order they were answered.

    A watch appears when it begins (stage ResponseStarted) and when it ends (ResponseComplete).
    """
    for line in whole_lines(path, offset):
        event = json.loads(line)
        target = event.get("objectRef", {})
        group = target.get("apiGroup", "")
        resource = target.get("resource", "")
        yield AuditEvent(
            user=event["user"].get("username", ""),
            agent=event.get("userAgent", ""),
            verb=event["verb"],
            uri=event["requestURI"],
            stage=event["stage"],
            resource=f"{group}/{resource}" if group else resource,
            subresource=target.get("subresource", ""),
            namespace=target.get("namespace", ""),
            name=target.get("name", ""),
            code=event.get("responseStatus", {}).get("code", 0),
            raw=event,
        )


def registry_requests(path: Path, offset: int = 0) -> Iterator[RegistryRequest]:
    """Read the requests in the registry's access log from an offset on."""
    for line in whole_lines(path, offset):
        found = _ACCESS.match(line.decode(errors="replace"))
        if found is not None:
            size = found["size"]
            yield RegistryRequest(
                time=found["time"],
                method=found["method"],
                path=found["path"],
                status=int(found["status"]),
                size=0 if size == "-" else int(size),
                agent=found["agent"],
            )
