import orjson
import pytest

from controller.kube.apierror import TEXT_MAX, ApiError, api_error
from tests.fakes.apiserver import refusal


def answered(status: int, body: object, headers: dict[str, str] | None = None) -> ApiError:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return api_error(status=status, headers=headers or {}, body=content, verb="get", path="/x")


def test_a_status_gives_reason_message_and_causes():
    causes = [
        {"reason": "FieldValueInvalid", "message": "too long", "field": "metadata.name"},
        {"message": "no field"},
    ]
    error = answered(422, refusal(422, "Invalid", "it is invalid", causes=causes))
    assert (error.status, error.reason, str(error)) == (422, "Invalid", "it is invalid")
    assert error.causes == ("metadata.name: too long", "no field")
    assert error.invalid
    assert not error.retryable


@pytest.mark.parametrize(
    ("status", "reason", "true"),
    [
        (404, "NotFound", {"not_found"}),
        (409, "Conflict", {"conflict"}),
        (409, "AlreadyExists", {"already_exists"}),
        (410, "Expired", {"expired"}),
        (400, "BadRequest", {"invalid"}),
        (422, "Invalid", {"invalid"}),
        (403, "Forbidden", set()),
        (429, "TooManyRequests", {"retryable"}),
        (500, "InternalError", {"retryable"}),
        (503, "ServiceUnavailable", {"retryable"}),
        (504, "Timeout", {"retryable"}),
        (0, "Unreachable", {"retryable"}),
        (0, "ConnectionLost", {"retryable"}),
        (0, "TLS", set()),
        (0, "TooLarge", set()),
    ],
)
def test_what_an_error_means(status: int, reason: str, true: set[str]):
    error = ApiError(status=status, reason=reason, message="m")
    names = ("not_found", "conflict", "already_exists", "expired", "invalid", "retryable")
    assert {name for name in names if getattr(error, name)} == true


def test_the_header_tells_when_to_come_back_else_the_details():
    body = refusal(429, "TooManyRequests", "slow down", retryAfterSeconds=7)
    assert answered(429, body, {"Retry-After": "3"}).retry_after == 3
    assert answered(429, body).retry_after == 7
    assert answered(429, refusal(429, "", "")).retry_after is None
    assert answered(503, b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}).retry_after is None


def test_an_answer_that_is_no_status_is_quoted_in_one_line():
    error = answered(404, b"404 page not found\nmore")
    assert error.message == "the API server answered get /x with HTTP 404: 404 page not found"
    assert error.not_found
    assert "html" not in answered(502, b"<html><body>Bad gateway").message


def test_endless_messages_are_cut():
    assert len(answered(422, refusal(422, "Invalid", "x" * 100_000)).message) == TEXT_MAX + 1


def test_a_resource_version_of_the_future_is_told_by_its_message():
    message = "Too large resource version: 99, current: 5"
    assert answered(504, refusal(504, "Timeout", message)).too_large_version
    assert not answered(504, refusal(504, "Timeout", "etcd is slow")).too_large_version


def test_what_to_do_is_told_where_the_server_cannot():
    assert "log in again" in str(answered(401, refusal(401, "Unauthorized", "Unauthorized")))
    assert "kubeconfig" in str(ApiError(status=0, reason="Unreachable", message="cannot reach it"))


def test_r3_a_version_that_is_ahead_is_known_by_the_reason_of_a_cause():
    ahead, other = (
        refusal(400, "Timeout", "not now", causes=[{"reason": reason, "message": "no"}])
        for reason in ("ResourceVersionTooLarge", "FieldValueInvalid")
    )
    assert answered(400, ahead).too_large_version
    assert not answered(400, other).too_large_version
