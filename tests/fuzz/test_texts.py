"""Short texts of registries and people: references, headers, answers of token servers."""

import contextlib

import httpx
from hypothesis import strategies as st

from controller.registry.challenge import check_realm, choose, parse_challenges, widened
from controller.registry.connection import Peer
from controller.registry.download import range_fits
from controller.registry.failures import AuthError, InvalidReference, RegistryError
from controller.registry.grants import read_token
from controller.registry.outcome import parse_retry_after, read_error
from controller.registry.reference import parse_reference
from controller.registry.responses import redirect_of
from controller.registry.wire import Answer, Ask
from tests.fuzz.inputs import check_text, damaged, damaged_text, fuzzed

DIGEST = f"sha256:{'a' * 64}"
REFERENCES = damaged_text(
    "ubuntu",
    "reg.io/acme/demo:v1",
    "localhost:5000/a/b",
    f"[::1]:5000/a/b_c.d:v1@{DIGEST}",
    f"index.docker.io/a__b--c/d@sha512:{'b' * 128}",
    "a" * 300,
) | st.text(st.sampled_from("aA0.:/@-_[]%\x00 é"), max_size=40)


@fuzzed(REFERENCES, st.booleans())
def test_a_text_is_a_reference_that_reads_back_or_an_error(text: str, strict: bool) -> None:
    try:
        found = parse_reference(text, strict=strict)
    except InvalidReference as error:
        check_text(error)
        return
    again = parse_reference(str(found), strict=strict)
    assert (again.source, again.tag, again.digest) == (found.source, found.tag, found.digest)
    url = httpx.URL(f"https://{found.host}/v2/{found.repository}/manifests/{found.identifier}")
    assert url.raw_path.decode() == f"/v2/{found.repository}/manifests/{found.identifier}"
    assert not any((url.userinfo, url.query, url.fragment))


CHALLENGES = damaged_text(
    'Bearer realm="https://auth.io/token",service="reg.io",scope="repository:a/b:pull"',
    'Negotiate, Basic realm="x"',
    'Basic realm="a\\"b", Bearer realm=https://a/t',
    "Negotiate abc==, Digest realm=a,,,qop=auth",
    'Bearer realm="' + "\\" * 3000 + '"',
    "," * 8000,
)


@fuzzed(st.lists(CHALLENGES, max_size=4))
def test_challenges_are_read_or_refused(headers: list[str]) -> None:
    with contextlib.suppress(AuthError):
        found = parse_challenges(headers)
        chosen = choose(found)
        assert chosen.scheme in ("bearer", "basic")
        widened(("repository:a/b:pull",), chosen.scope)
        with contextlib.suppress(RegistryError):
            check_realm(chosen.realm, registry="reg.io", registry_scheme="https")


REALMS = damaged_text(
    "https://auth.io/token?a=b",
    "https://[::1]:5000/t",
    "http://reg.io/token",
    "https://a:b@reg.io/",
    "https://reg.io:99999/",
    "https://xn--a/",
)


@fuzzed(REALMS, st.sampled_from(["http", "https"]))
def test_a_realm_is_a_url_or_refused(realm: str, scheme: str) -> None:
    try:
        check_realm(realm, registry="reg.io", registry_scheme=scheme)
    except RegistryError as error:
        check_text(error)
        return
    url = httpx.URL(realm)
    assert url.host
    assert url.scheme == "https" or scheme == "http"
    assert not url.userinfo


LOCATIONS = damaged_text(
    "https://blobs.io/a?b=c#d",
    "//blobs.io/a",
    "/v2/a/blobs/x",
    "https://xn--a/",
    "https://a:b@blobs.io/",
    "https://blobs.io:99999/",
    "https://169.254.169.254/",
    "https://[::ffff:169.254.169.254]/",
    "ftp://blobs.io/",
)


@fuzzed(LOCATIONS, st.sampled_from([302, 307, 200]))
def test_a_redirect_leads_to_an_allowed_url_or_nowhere(location: str, status: int) -> None:
    here = httpx.URL("https://reg.io/v2/a/blobs/x")
    headers = httpx.Headers([(b"Location", location.encode("latin-1"))])
    peer = Peer(host="reg.io", http_allowed=False, policy="strict", warn=print)
    try:
        target = redirect_of(httpx.Response(status, headers=headers), here, Ask("a", "GET", "/"))
        if target is None:
            return
        peer.check_target(target, came_from=here)
    except RegistryError as error:
        check_text(error)
        return
    assert (target.scheme, bool(target.host)) == ("https", True)
    assert not any((target.userinfo, target.fragment))


PAUSES = damaged_text(
    "5", "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2359", "1" * 9
)


@fuzzed(PAUSES)
def test_pauses_are_numbers(text: str) -> None:
    seconds = parse_retry_after(text, now=1.7e9)
    assert seconds is None or seconds >= 0


@fuzzed(damaged_text("bytes 5-9/10", "bytes 5-9/*", "bytes 0-0/1"))
def test_ranges_fit_or_do_not(text: str) -> None:
    if range_fits(text, start=5, size=10):
        assert text.strip().lower().startswith("bytes")


@fuzzed(
    damaged_text(
        '<https://reg.io/v2/a/tags/list?last=b>; rel="next"',
        "</v2/a?n=1>; rel=next",
        "<https://xn--a/>; rel=next",
    )
)
def test_the_next_page_is_on_the_same_registry(link: str) -> None:
    url = httpx.URL("https://reg.io/v2/a/tags/list?n=1")
    try:
        headers = httpx.Headers([(b"Link", link.encode("latin-1"))])
    except UnicodeError:
        return
    page = Answer(httpx.Response(200, headers=headers), url, foreign=False).next_page()
    assert page is None or page.startswith("/")


@fuzzed(damaged(st.just(b'{"token": "abc", "access_token": "x", "expires_in": 300}')))
def test_tokens_can_stand_in_a_header(body: bytes) -> None:
    try:
        token, seconds = read_token(body, host="auth.io")
    except RegistryError as error:
        check_text(error)
        return
    httpx.Headers({"Authorization": f"Bearer {token}"})
    assert "\n" not in token
    assert 0 < seconds <= 86400


@fuzzed(
    damaged(st.just(b'{"errors": [{"code": "DENIED", "message": "no", "detail": {}}]}')),
    st.sampled_from(["application/json", "text/html", ""]),
)
def test_error_answers_become_short_lines(body: bytes, kind: str) -> None:
    code, text = read_error(body, kind)
    assert len(code) <= 2048
    assert len(text) <= 2048
    assert (code + text).isprintable()
