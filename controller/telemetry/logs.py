"""Logs: structlog's and the standard library's lines on one stream, without credentials.

Guarantees: a line is never lost for what it holds; no line shows local variables, request bodies or
the values that keys, headers and addresses keep secret.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# Libraries that print bodies, headers or signed addresses below these levels.
_LEVEL_FLOORS = {
    "kubernetes_asyncio": logging.INFO,
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "aiohttp.access": logging.WARNING,
}
_SECRET_KEY = re.compile(
    r"(proxy-)?authorization|x-registry-auth|auth|(set-)?cookie|password|client-secret|private-key"
    r"|api-key|((access|refresh|id|identity|registry|bearer)-?)?token",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"(?P<scheme>\b(?i:bearer|basic)\s+)(?=\S*[0-9A-Z=])[\w.~+/=-]{6,}"
    r"|(?P<user>://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?P<query>[?&](?i:sig|signature|(?:access_|id_|refresh_)?token"
    r"|x-(?:amz|goog)-(?:signature|credential|security-token))=)[^&\s\"']+"
)
_REDACTED = "***"
_REDACTION_DEPTH = 5


def configure_logging(
    *,
    format: Literal["json", "console"],  # noqa: A002 - named for the flag --log-format
    level: Literal["debug", "info", "warning", "error"],
    stream: TextIO | None = None,
) -> None:
    """Send the process's logs, structlog's and the standard library's, to one stream.

    Args:
        format: ``json``, one object a line, or ``console`` for people.
        level: the lowest level that is shown.
        stream: where to; standard error by default.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    target = stream if stream is not None else sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    renderer = _renderer(format, colours=target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                redact,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(threshold)
    for name, floor in _LEVEL_FLOORS.items():
        logging.getLogger(name).setLevel(max(threshold, floor))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _renderer(format: Literal["json", "console"], *, colours: bool) -> Processor:  # noqa: A002 - as above
    if format == "json":
        return structlog.processors.JSONRenderer(serializer=_to_json)
    # The plain formatter: others print local variables, which hold secrets.
    return structlog.dev.ConsoleRenderer(
        colors=colours, exception_formatter=structlog.dev.plain_traceback
    )


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:  # noqa: ARG001 - the signature of processors
    """Return a log event without credentials: in keys named for them, headers and addresses."""
    return {key: _redacted(key, value, 0) for key, value in event.items()}


def _redacted(key: object, value: object, depth: int) -> object:
    if isinstance(key, str) and _SECRET_KEY.fullmatch(key.replace("_", "-")):
        return _REDACTED
    if isinstance(value, str):
        return _SECRET_TEXT.sub(_mask, value)
    if isinstance(value, Mapping | list | tuple):
        if depth == _REDACTION_DEPTH:
            return "…"
        if isinstance(value, Mapping):
            return {k: _redacted(k, v, depth + 1) for k, v in value.items()}
        return [_redacted(None, v, depth + 1) for v in value]
    return value


def _mask(match: re.Match[str]) -> str:
    kept = match["scheme"] or match["user"] or match["query"]
    return f"{kept}{_REDACTED}"


def _to_json(event: MutableMapping[str, Any], default: Callable[[Any], Any], **_: object) -> str:
    try:
        return orjson.dumps(event, default=default).decode()
    except TypeError:  # odd keys, lone surrogates, huge integers: a log line is never lost
        return json.dumps(event, default=default, skipkeys=True)
