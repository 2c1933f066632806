"""Logs: one stream, one form, no credentials."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from controller.telemetry import configure_logging
from controller.telemetry.logs import redact

NOISY = ("kubernetes_asyncio", "httpx", "httpcore", "aiohttp.access")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging as it was before the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in NOISY}
    yield
    root.handlers, root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def start(log_format: Any = "json", level: Any = "info") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(format=log_format, level=level, stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_time_level_logger_and_bound_context():
    stream = start()
    with structlog.contextvars.bound_contextvars(stage="image", key="Provider/a"):
        structlog.get_logger("controller.flow.worker").info("done", seconds=1.5)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "done",
        "level": "info",
        "logger": "controller.flow.worker",
        "stage": "image",
        "key": "Provider/a",
        "seconds": 1.5,
    }


def test_the_standard_librarys_lines_have_the_same_form():
    stream = start()
    structlog.contextvars.bind_contextvars(stage="image")
    logging.getLogger("asyncio").warning("slow callback: %s", "x")
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"]) == (
        "slow callback: x",
        "warning",
        "asyncio",
    )
    assert line["stage"] == "image"


def test_the_console_form_is_for_people():
    stream = start("console")
    structlog.get_logger("x").warning("failed", error="no such image")
    text = stream.getvalue()
    assert "failed" in text
    assert "error='no such image'" in text
    assert "\x1b[" not in text


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_lines_below_the_level_are_not_shown(level, shown):
    for log in (structlog.get_logger("x"), logging.getLogger("x")):
        stream = start(level=level)
        for name in ("debug", "info", "warning", "error"):
            getattr(log, name)("event")
        assert [line["level"] for line in lines(stream)] == shown


def test_libraries_that_print_bodies_stay_silent_at_debug():
    stream = start(level="debug")
    for name in ("kubernetes_asyncio.client.rest", "httpx", "httpcore.http11"):
        logging.getLogger(name).debug("response body: %s", "c2VjcmV0")
    logging.getLogger("httpx").info("HTTP Request: GET https://cdn/x?sig=secret")
    assert stream.getvalue() == ""
    logging.getLogger("kubernetes_asyncio").info("reading kubeconfig")
    assert len(lines(stream)) == 1


def test_a_higher_level_holds_for_those_libraries_too():
    stream = start(level="error")
    logging.getLogger("kubernetes_asyncio").warning("x")
    assert stream.getvalue() == ""


def fail(message: str, pull_secret: str) -> None:
    raise ValueError(message)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_is_shown_without_the_values_of_variables(log_format):
    stream = start(log_format)
    try:
        fail("broken", "hunter" + str(2))
    except ValueError as error:
        structlog.get_logger("x").warning("failed", exc_info=error)
    text = stream.getvalue()
    assert "ValueError: broken" in text
    assert "Traceback" in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    "value",
    ["\ud800", 2**70, {1, 2}, b"\xff", object(), {("a", 1): 2}, float("nan")],
    ids=["surrogate", "integer", "set", "bytes", "object", "keys", "nan"],
)
def test_a_line_is_never_lost_for_what_it_holds(value, capfd):
    stream = start()
    structlog.get_logger("x").info("odd", value=value)
    (line,) = lines(stream)
    assert line["event"] == "odd"
    assert capfd.readouterr().err == ""


# ---- redaction -----------------------------------------------------------------------------------


def redacted(**event: Any) -> Any:
    return redact(None, "info", event)


@pytest.mark.parametrize(
    "key",
    [
        "authorization",
        "Authorization",
        "Proxy-Authorization",
        "proxy_authorization",
        "X-Registry-Auth",
        "auth",
        "cookie",
        "Set-Cookie",
        "password",
        "token",
        "access_token",
        "identitytoken",
        "registryToken",
        "refresh_token",
        "client_secret",
        "private_key",
        "api_key",
    ],
)
def test_the_value_of_a_key_named_for_a_credential_is_not_shown(key):
    assert redacted(**{key: "hunter2"}) == {key: "***"}
    assert redacted(headers={key: ["hunter2"]}) == {"headers": {key: "***"}}
    assert (
        redacted(requests=[{"headers": {key: "hunter2"}}])["requests"][0]["headers"][key] == "***"
    )


@pytest.mark.parametrize("key", ["secret", "pull_secret", "tokens_left", "key", "author"])
def test_names_and_counts_are_shown(key):
    assert redacted(**{key: "acme/regcred"}) == {key: "acme/regcred"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sent Authorization: Bearer eyJhbGciOi.J9", "sent Authorization: Bearer ***"),
        ("Basic dXNlcjpwYXNz was refused", "Basic *** was refused"),
        ("GET https://bob:hunter2@reg.io/v2/", "GET https://***@reg.io/v2/"),
        ("https://cdn/b?X-Amz-Signature=ab12&x=1", "https://cdn/b?X-Amz-Signature=***&x=1"),
        ("https://cdn/b?sv=1&sig=a%2Bb", "https://cdn/b?sv=1&sig=***"),
        ("https://auth/token?token=abc", "https://auth/token?token=***"),
        ("the bearer of this", "the bearer of this"),
        ("basic authentication is off", "basic authentication is off"),
        ("pulled xpkg.io/acme/p:v1@sha256:0a", "pulled xpkg.io/acme/p:v1@sha256:0a"),
        ("http://127.0.0.1:5000/v2/a@b", "http://127.0.0.1:5000/v2/a@b"),
    ],
)
def test_credentials_inside_text_are_not_shown(text, shown):
    assert redacted(event=text) == {"event": shown}


def test_redaction_reaches_what_the_stream_shows():
    stream = start()
    structlog.get_logger("x").info("sent", headers={"Authorization": "Bearer abcdefgh1"})
    logging.getLogger("x").warning("refused: Bearer %s", "abcdefgh1")
    try:
        fail("https://u:hunter2@h/", "")
    except ValueError:
        structlog.get_logger("x").exception("failed")
    text = stream.getvalue()
    assert "abcdefgh1" not in text
    assert "hunter2" not in text


def test_the_callers_values_are_not_changed():
    headers = {"authorization": "x"}
    redacted(headers=headers)
    assert headers == {"authorization": "x"}


def test_a_value_that_holds_itself_ends():
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    assert "…" in str(redacted(loop=loop))
