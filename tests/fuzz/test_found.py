"""What fuzzing found, in its shortest form."""

import httpx
import pytest

from controller.registry.challenge import check_realm
from controller.registry.failures import PolicyViolation, RegistryUnavailable
from controller.registry.outcome import parse_retry_after
from controller.registry.responses import redirect_of
from controller.registry.wire import Answer, Ask

HERE = httpx.URL("https://reg.io/v2/a/tags/list")


@pytest.mark.parametrize(
    "realm",
    ["https://\x80uth.io/token", "https://\x00uth.io/token", "https://xn--a/"],
)
def test_a_realm_that_no_request_can_be_sent_to_is_refused(realm: str) -> None:
    with pytest.raises(PolicyViolation, match="unusable token server"):
        check_realm(realm, registry="reg.io", registry_scheme="https")


@pytest.mark.parametrize("target", ["https://xn--a/", "//xn--a/"])
def test_a_redirect_to_a_name_that_is_none_is_refused(target: str) -> None:
    answer = httpx.Response(302, headers={"Location": target})
    with pytest.raises(RegistryUnavailable, match="something that is no URL"):
        redirect_of(answer, HERE, Ask("a", "GET", "/"))


def test_a_next_page_at_a_name_that_is_none_is_no_page() -> None:
    answer = httpx.Response(200, headers={"Link": "<https://xn--a/>; rel=next"})
    assert Answer(answer, HERE, foreign=False).next_page() is None


def test_a_pause_until_a_day_that_no_calendar_has_is_ignored() -> None:
    assert parse_retry_after(f"Wed, {'2' * 40} Oct 2015 07:28:00 GMT", now=0) is None
