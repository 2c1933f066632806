import gzip

import httpx
import pytest

from controller.registry.failures import LimitExceeded, RegistryUnavailable
from controller.registry.wire import Answer, Ask, decoded


def answer(content=b"", headers=(), url="https://reg.io/v2/a/tags/list?n=1000"):
    async def body():
        yield content

    response = httpx.Response(200, headers=list(headers), content=body())
    return Answer(response, httpx.URL(url), foreign=False)


async def test_a_body_is_read_up_to_its_limit():
    assert await answer(b"12345").read(5, "thing") == b"12345"
    with pytest.raises(LimitExceeded, match="the thing is larger than 4 bytes"):
        await answer(b"12345").read(4, "thing")


async def test_a_declared_length_beyond_the_limit_is_not_even_read():
    with pytest.raises(LimitExceeded):
        await answer(headers=[("Content-Length", "99999999999")]).read(4, "thing")


def test_repeated_headers_that_differ_say_nothing():
    assert answer(headers=[("A", "1"), ("A", "1")]).header("a") == "1"
    assert answer(headers=[("A", "1"), ("A", "2")]).header("a") == ""
    assert answer().header("a") == ""


def test_content_encoding_is_taken_off_within_the_limit():
    packed = gzip.compress(b"x" * 1000)
    assert decoded(packed, "gzip", 1000, "thing") == b"x" * 1000
    assert decoded(b"plain", "identity", 10, "thing") == b"plain"
    with pytest.raises(LimitExceeded):
        decoded(gzip.compress(b"x" * 10_000_000), "gzip", 1000, "thing")
    for damaged in (packed[:-4], packed + b"more", b"no gzip"):
        with pytest.raises(RegistryUnavailable, match="damaged"):
            decoded(damaged, "gzip", 1000, "thing")
    with pytest.raises(RegistryUnavailable, match="unknown content encoding"):
        decoded(b"", "br", 10, "thing")


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ('</v2/a/tags/list?last=x&n=1>; rel="next"', "/v2/a/tags/list?last=x&n=1"),
        ("</v2/a/tags/list?last=x>; rel=next", "/v2/a/tags/list?last=x"),
        ('<https://reg.io/v2/a/tags/list?last=x>; rel="next"', "/v2/a/tags/list?last=x"),
        ('<https://reg.io:443/v2/x>; rel="next"', "/v2/x"),
        ('<https://evil.io/v2/a/tags/list>; rel="next"', None),
        ('<http://reg.io/v2/a/tags/list>; rel="next"', None),
        ('</v2/a/tags/list>; rel="prev"', None),
        ("<https://[::1/>; rel=next", None),
        ("", None),
    ],
)
def test_the_next_page_is_on_the_same_registry(link, target):
    assert answer(headers=[("Link", link)] if link else ()).next_page() == target


def test_secrets_do_not_show():
    ask = Ask("token", "POST", "https://x", {}, b"refresh_token=secret", secret="Basic secret")
    assert "secret" not in repr(ask)
