import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.registry.challenge import (
    Challenge,
    check_realm,
    choose,
    may_see_credentials,
    on_foreign_realm,
    parse_challenges,
    scopes_for,
    widened,
)
from controller.registry.failures import AuthError, PolicyViolation

T = "https://auth.reg.io/token"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (['Basic realm="x"'], [Challenge("basic", "x")]),
        (["basic REALM=x"], [Challenge("basic", "x")]),
        ([f'Bearer realm="{T}",service="reg",scope="repository:a:pull"'],
         [Challenge("bearer", T, "reg", "repository:a:pull")]),
        ([f"Bearer realm={T},service=reg"], [Challenge("bearer", T, "reg")]),
        ([f'Bearer  realm = "{T}" , error="insufficient_scope"'],
         [Challenge("bearer", T, error="insufficient_scope")]),
        (['Negotiate, Basic realm="x"'], [Challenge("negotiate"), Challenge("basic", "x")]),
        (['Negotiate TlRMTVNTUAAB==, Basic realm="x"'],
         [Challenge("negotiate"), Challenge("basic", "x")]),
        (["Negotiate", f'Bearer realm="{T}"'], [Challenge("negotiate"), Challenge("bearer", T)]),
        ([f'Bearer realm="{T}",scope="a,b c", Basic realm="y"'],
         [Challenge("bearer", T, scope="a,b c"), Challenge("basic", "y")]),
        (['Basic realm="a \\"quoted\\" one"'], [Challenge("basic", 'a "quoted" one')]),
        (['Basic realm=""'], [Challenge("basic")]),
        (["Basic"], [Challenge("basic")]),
        ([""], []),
        ([", ,"], []),
        ([], []),
        (['="x"'], []),
        (['Bearer realm="first",realm="second"'], [Challenge("bearer", "first")]),
        (['Bearer realm="unterminated'], [Challenge("bearer")]),
    ],
)  # fmt: skip
def test_challenges_are_read(headers, expected):
    assert parse_challenges(headers) == expected


def test_challenges_are_bounded():
    with pytest.raises(AuthError, match="longer than 16384 bytes"):
        parse_challenges(["x" * 20_000])
    with pytest.raises(AuthError, match="more than 8 challenges"):
        parse_challenges(['Basic realm="x"'] * 9)
    [found] = parse_challenges([f'Basic realm="{"x" * 5000}"'])
    assert found.realm == ""


@given(st.lists(st.text(max_size=200) | st.text('Bearer realm="x",= \\', max_size=80), max_size=4))
def test_any_header_is_read_or_refused(headers):
    try:
        found = parse_challenges(headers)
    except AuthError:
        return
    assert all(challenge.scheme for challenge in found)


def test_bearer_is_preferred_and_basic_taken():
    basic, bearer = Challenge("basic", "x"), Challenge("bearer", T)
    assert choose([basic, bearer]) is bearer
    assert choose([Challenge("bearer", "no url"), basic]) is basic
    assert choose([Challenge("negotiate"), basic]) is basic


def test_other_schemes_are_named_in_the_error():
    with pytest.raises(AuthError, match="unsupported authentication scheme: negotiate, ntlm"):
        choose([Challenge("ntlm"), Challenge("negotiate")])
    with pytest.raises(AuthError, match="without saying which"):
        choose([])


def test_scopes_keep_ours_first():
    own = scopes_for("acme/demo", "pull", "push")
    assert own == ("repository:acme/demo:pull,push",)
    assert widened(own, "repository:x:pull repository:acme/demo:pull,push") == (
        "repository:acme/demo:pull,push",
        "repository:x:pull",
    )
    assert widened(own, "") == own


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.reg.io/token",
        "file:///etc/passwd",
        "https://user:pw@auth.reg.io/token",
        "https://auth.reg.io/token#x",
        "https:///token",
        "//auth.reg.io/token",
        "token",
        "https://[::1/token",
        "https://auth.reg.io:port/token",
    ],
)
def test_unusable_token_servers_are_refused(realm):
    with pytest.raises(PolicyViolation) as raised:
        check_realm(realm, registry="reg.io", registry_scheme="https")
    assert "pw" not in str(raised.value)


def test_a_token_server_may_be_as_unsafe_as_its_registry():
    check_realm("http://127.0.0.1:1/token", registry="127.0.0.1:5000", registry_scheme="http")
    check_realm("https://auth.reg.io/t?a=b", registry="reg.io", registry_scheme="https")


@pytest.mark.parametrize(
    ("realm", "registry", "may"),
    [
        ("reg.io", "reg.io", True),
        ("auth.reg.io", "reg.io", True),
        ("gitlab.com", "registry.gitlab.com", True),
        ("auth.docker.io", "registry-1.docker.io", True),
        ("127.0.0.2", "127.0.0.1", True),
        ("Trusted.example", "reg.io", True),
        ("evil.org", "reg.io", False),
        ("evilreg.io", "reg.io", False),
        ("b.azurecr.io", "a.azurecr.io", False),
        ("io", "reg.io", False),
        ("127.0.0.1", "reg.io", False),
        ("1.10.0.0.1", "10.0.0.1", False),
    ],
)
def test_who_may_see_the_credentials_of_a_registry(realm, registry, may):
    assert may_see_credentials(realm, registry_host=registry, trusted=["trusted.example"]) is may


def test_a_foreign_token_server_is_warned_of_or_refused():
    assert "evil.org" in on_foreign_realm("evil.org", registry="reg.io", policy="warn")
    with pytest.raises(AuthError, match=r"refusing to send credentials for reg.io .*evil.org"):
        on_foreign_realm("evil.org", registry="reg.io", policy="strict")
