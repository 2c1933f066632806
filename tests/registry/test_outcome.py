import email.utils
import errno
import socket
import ssl

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.registry.failures import (
    AuthError,
    IntegrityError,
    NotFound,
    RateLimited,
    RegistryError,
    RegistryUnavailable,
    TLSError,
)
from controller.registry.outcome import (
    broke_protocol,
    error_of,
    next_delay,
    parse_retry_after,
    read_error,
    says_no_tls,
    translate,
)
from controller.registry.wire import Limits

NOW = 1_700_000_000.0
LIMITS = Limits()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        (email.utils.formatdate(NOW + 30, usegmt=True), 30.0),
        (email.utils.formatdate(NOW - 30, usegmt=True), 0.0),
        ("86400", 86400.0),
        ("-5", None),
        ("880.092µs", None),
        ("soon", None),
        ("", None),
        ("1e3", None),
        ("٣", None),
        ("9" * 40, None),
        ("Mon, 99 Nonsense", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text, seconds):
    assert parse_retry_after(text, now=NOW) == seconds


@given(st.text(max_size=60))
def test_any_retry_after_is_read_or_ignored(text):
    seconds = parse_retry_after(text, now=NOW)
    assert seconds is None or seconds >= 0


def test_pauses_grow_and_end():
    error = RegistryUnavailable("x", transient=True)
    assert [next_delay(error, n, LIMITS, 1.0) for n in (1, 2, 3, 4)] == [1.0, 3.0, 9.0, None]
    assert next_delay(error, 1, LIMITS, 0.0) == 0.5
    long = Limits(attempts=10)
    assert next_delay(error, 9, long, 1.0) == 30.0


def test_only_transient_failures_are_tried_again():
    assert next_delay(NotFound("x"), 1, LIMITS, 1.0) is None
    twice = IntegrityError("x", transient=True, attempts=2)
    assert next_delay(twice, 1, LIMITS, 1.0) == 1.0
    assert next_delay(twice, 2, LIMITS, 1.0) is None


@pytest.mark.parametrize(
    ("asked", "pause"), [(0.0, 0.0), (60.0, 60.0), (61.0, None), (86400.0, None)]
)
def test_a_long_pause_is_left_to_the_caller(asked, pause):
    error = RateLimited("x", transient=True, retry_after=asked)
    assert next_delay(error, 1, LIMITS, 1.0) == pause


@pytest.mark.parametrize(
    ("status", "kind", "transient", "final"),
    [
        (400, RegistryError, False, False),
        (401, AuthError, False, False),
        (403, AuthError, False, False),
        (404, NotFound, False, False),
        (405, RegistryError, False, False),
        (408, RegistryUnavailable, True, False),
        (410, NotFound, False, False),
        (416, RegistryError, False, False),
        (425, RegistryUnavailable, True, False),
        (429, RateLimited, True, False),
        (500, RegistryUnavailable, True, False),
        (501, RegistryUnavailable, False, False),
        (502, RegistryUnavailable, True, False),
        (503, RegistryUnavailable, True, False),
        (504, RegistryUnavailable, True, False),
        (522, RegistryUnavailable, True, False),
    ],
)
def test_each_status_has_its_error(status, kind, transient, final):
    error = error_of(status, host="reg.io", body=b"")
    assert type(error) is kind
    assert (error.transient, error.final, error.status) == (transient, final, status)
    assert f"reg.io answered HTTP {status}" in str(error)


def test_the_registrys_own_words_are_shown():
    body = b'{"errors":[{"code":"DENIED","message":"no\\u001b[31m","detail":"more"}]}'
    assert "HTTP 403: DENIED: no [31m: more" in str(error_of(403, host="reg.io", body=body))
    limited = error_of(400, host="r", body=b'{"errors":[{"code":"TOOMANYREQUESTS"}]}')
    assert isinstance(limited, RateLimited)


@pytest.mark.parametrize(
    ("body", "content_type", "code", "message"),
    [
        (b"", "", "", ""),
        (b"404 page not found", "text/plain", "", "404 page not found"),
        (b"<html><title>Sign in</title></html>", "text/html", "", "Sign in"),
        (b"<html>x</html>", "", "", "a web page"),
        (b'{"errors":[]}', "", "", '{"errors":[]}'),
        (b'{"errors":[{"code":1,"message":null}]}', "", "1", ""),
        (b"[" * 9999, "", "", None),
        (b"\xff\x00", "", "", "\ufffd"),
    ],
)
def test_error_bodies_are_read(body, content_type, code, message):
    found = read_error(body, content_type)
    assert found[0] == code
    assert message is None or found[1] == message
    assert len(found[1]) <= 500


@given(st.binary(max_size=300))
def test_any_error_body_gives_printable_text(body):
    assert all(part.isprintable() for part in read_error(body))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def certificate_error() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    return error


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "refused")


@pytest.mark.parametrize(
    ("error", "kind", "transient", "message"),
    [
        (caused(httpcore.ConnectError(), certificate_error()), TLSError, False,
         "reg.io is not trusted: self-signed certificate; add its authority with --ca-bundle-path"),
        (caused(httpcore.ConnectError(), tls_error("WRONG_VERSION_NUMBER")), TLSError, False,
         "reg.io does not speak TLS"),
        (caused(httpcore.ConnectError(), tls_error("TLSV1_ALERT_PROTOCOL_VERSION")),
         TLSError, False, "TLSV1_ALERT_PROTOCOL_VERSION"),
        (caused(httpcore.ConnectError(), socket.gaierror(-2, "Name or service not known")),
         RegistryUnavailable, True, "the name reg.io cannot be resolved: Name or service"),
        (caused(httpcore.ConnectError(), REFUSED), RegistryUnavailable, True, "refuses"),
        (httpcore.ConnectTimeout(), RegistryUnavailable, True, "does not accept connections"),
        (httpcore.ReadTimeout(), RegistryUnavailable, True, "did not answer in time"),
        (httpcore.RemoteProtocolError("bad\r\nline"), RegistryUnavailable, True, "bad line"),
        (httpcore.ReadError(), RegistryUnavailable, True, "connection to reg.io broke"),
        (UnicodeError("label too long"), RegistryUnavailable, False, "no usable host"),
    ],
)  # fmt: skip
def test_the_network_librarys_errors_are_translated(error, kind, transient, message):
    found = translate(error, host="reg.io")
    assert type(found) is kind
    assert found.transient is transient
    assert message in str(found)
    assert str(found).isprintable()


def raised_from(cause: Exception) -> RegistryError:
    error = translate(cause, host="h")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "loopback", "elsewhere"),
    [
        (caused(httpcore.ConnectError(), REFUSED), True, True),
        (caused(httpcore.ConnectError(), tls_error("WRONG_VERSION_NUMBER")), True, True),
        (caused(httpcore.ConnectError(), certificate_error()), False, False),
        (caused(httpcore.ConnectError(), tls_error("TLSV1_ALERT_PROTOCOL_VERSION")), False, False),
        (caused(httpcore.ConnectError(), ConnectionResetError(104, "reset")), True, False),
        (httpcore.ReadError(), False, False),
        (httpcore.ConnectTimeout(), False, False),
    ],
)
def test_what_means_that_a_host_speaks_plain_http(cause, loopback, elsewhere):
    error = raised_from(cause)
    assert says_no_tls(error, host="127.0.0.1:5000") is loopback
    assert says_no_tls(error, host="reg.internal:5000") is elsewhere


def test_broken_protocol_is_told_from_no_answer():
    assert broke_protocol(raised_from(httpcore.RemoteProtocolError("x")))
    assert not broke_protocol(raised_from(httpcore.ReadTimeout()))
