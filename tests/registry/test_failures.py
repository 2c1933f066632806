import pytest

from controller.registry import failures
from controller.registry.failures import (
    InvalidReference,
    LimitExceeded,
    NotFound,
    PolicyViolation,
    RateLimited,
    RegistryError,
    RegistryUnavailable,
    printable,
)

FINAL = {
    "InvalidReference",
    "LimitExceeded",
    "MalformedManifest",
    "PolicyViolation",
    "UnsupportedMedia",
}


def test_only_failures_that_waiting_cannot_mend_are_final():
    family = {
        name: thing
        for name, thing in vars(failures).items()
        if isinstance(thing, type) and issubclass(thing, RegistryError)
    }
    assert {name for name, thing in family.items() if thing("x").final} == FINAL


def test_the_text_names_subject_cause_and_remedy():
    error = NotFound("not found", remedy="check the name").about("reg.io/a:v1")
    assert str(error) == "reg.io/a:v1: not found; check the name"
    assert str(error.about("another")).startswith("reg.io/a:v1: ")
    assert str(RegistryError("cause")) == "cause"


def test_numbers_stay_with_the_error():
    error = RateLimited("slow down", status=429, code="TOOMANYREQUESTS", retry_after=90.0)
    assert (error.status, error.code, error.retry_after, error.retryable) == (
        429,
        "TOOMANYREQUESTS",
        90.0,
        True,
    )


def test_an_invalid_reference_is_a_value_error():
    assert issubclass(InvalidReference, ValueError)


@pytest.mark.parametrize(
    ("foreign", "shown"),
    [
        ("a\r\nb\tc", "a b c"),
        ("\x1b[31mred\x07", "[31mred"),
        ("left\u202eright\u200b", "left right"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer ***"),
        ("\ud800", ""),
        ("ü€", "ü€"),
    ],
)
def test_foreign_text_becomes_one_clean_line(foreign, shown):
    assert printable(foreign) == shown


def test_foreign_text_is_bounded():
    assert len(printable("x" * 10_000)) == 1024
    assert len(printable("x" * 10_000, limit=40)) == 40
    assert printable("y" * 40, limit=40) == "y" * 40


def test_kinds_are_told_apart_by_class():
    assert not isinstance(LimitExceeded("x"), PolicyViolation)
    assert isinstance(RegistryUnavailable("x"), RegistryError)
