"""How failures become one line."""

from __future__ import annotations

import pytest

from controller.cli.failures import explain
from controller.cli.session import CommandError, NotReadyError
from controller.kube.client import ApiError, ConfigError
from controller.registry.failures import RateLimited


def refusal(**values):
    return ApiError(**{"status": 500, "reason": "", "message": "no", **values})


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (CommandError("no such thing"), "no such thing"),
        (ConfigError("no kubeconfig"), "no kubeconfig"),
        (RateLimited("too many requests", subject="a/b:v1"), "a/b:v1: too many requests"),
        (refusal(status=422, message="spec.package: Invalid value"), "spec.package: Invalid value"),
        (
            refusal(status=403, message="providers is forbidden"),
            "providers is forbidden: use an account that may, or another --context",
        ),
        (
            refusal(status=404, message="the server could not find the requested resource"),
            (
                "this cluster does not serve Crossplane's package kinds (the server could not "
                "find the requested resource): run 'crossdock init' first, or choose another "
                "cluster with --context"
            ),
        ),
        (
            refusal(status=404, message='providers.pkg.crossplane.io "x" not found'),
            'providers.pkg.crossplane.io "x" not found',
        ),
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: No such file or directory"),
    ],
    ids=range(8),
)
def test_an_error_of_the_world_is_told_in_its_own_words(make_session, error, text):
    told = explain(error, make_session())
    assert (str(told), told.code) == (text, 1)


def test_of_several_errors_the_first_is_told(make_session):
    group = ExceptionGroup("several", [ExceptionGroup("more", [NotReadyError("late")]), OSError()])
    told = explain(group, make_session())
    assert (str(told), told.code) == ("late", 3)


def test_any_other_error_is_a_fault_of_crossdock_and_says_where(make_session):
    try:
        int("x")
    except ValueError as error:
        told = explain(error, make_session())
    assert told.code == 1
    assert str(told).startswith("invalid literal for int() with base 10: 'x' (ValueError at test")
    assert "\n" not in str(told)
