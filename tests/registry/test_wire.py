import dataclasses
import gzip

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.registry.failures import LimitExceeded, RegistryUnavailable
from controller.registry.wire import Answer, Ask, Limits, decoded, exceeded


def answer(content=b"", headers=(), url="https://reg.io/v2/a/tags/list?n=1000"):
    async def body():
        yield content

    response = httpx.Response(200, headers=list(headers), content=body())
    return Answer(response, httpx.URL(url), foreign=False)


async def test_a_body_is_read_up_to_its_limit():
    assert await answer(b"12345").read(5, "thing", name="tags_page_bytes") == b"12345"
    with pytest.raises(
        LimitExceeded, match=r"larger than 4 bytes; .* --registry-limit=tags-page-bytes=N"
    ):
        await answer(b"12345").read(4, "thing", name="tags_page_bytes")


async def test_a_declared_length_beyond_the_limit_is_not_even_read():
    long = answer(headers=[("Content-Length", "99999999999")])
    with pytest.raises(LimitExceeded):
        await long.read(4, "thing", name="tags_page_bytes")


def test_repeated_headers_that_differ_say_nothing():
    assert answer(headers=[("A", "1"), ("A", "1")]).header("a") == "1"
    assert answer(headers=[("A", "1"), ("A", "2")]).header("a") == ""
    assert answer().header("a") == ""


def test_content_encoding_is_taken_off_within_the_limit():
    packed = gzip.compress(b"x" * 1000)
    assert decoded(packed, "gzip", 1000, "thing", name="tags_page_bytes") == b"x" * 1000
    assert decoded(b"plain", "identity", 10, "thing", name="tags_page_bytes") == b"plain"
    with pytest.raises(LimitExceeded):
        decoded(gzip.compress(b"x" * 10_000_000), "gzip", 1000, "thing", name="tags_page_bytes")
    for damaged in (packed[:-4], packed + b"more", b"no gzip"):
        with pytest.raises(RegistryUnavailable, match="damaged"):
            decoded(damaged, "gzip", 1000, "thing", name="tags_page_bytes")
    with pytest.raises(RegistryUnavailable, match="unknown content encoding"):
        decoded(b"", "br", 10, "thing", name="tags_page_bytes")


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


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=80))
def test_any_link_stays_on_the_registry_or_leads_nowhere(link):
    target = answer(headers=[("Link", link)]).next_page()
    assert target is None or target.startswith("/")


def test_secrets_do_not_show():
    ask = Ask("token", "POST", "https://x", {}, b"refresh_token=secret", secret="Basic secret")
    assert "secret" not in repr(ask)


def test_limits_are_set_by_name():
    limits = Limits.of(["manifest-bytes=8388608", "blob_seconds=2.5", "resumes=2"])
    assert (limits.manifest_bytes, limits.blob_seconds, limits.resumes) == (8388608, 2.5, 2)
    assert Limits.of([]) == Limits()


@pytest.mark.parametrize(
    "setting",
    ["x=1", "layers=0", "layers=-1", "layers=1.5", "layers=", "layers", "blob-seconds=nan"],
)
def test_limits_that_are_none_are_refused(setting):
    with pytest.raises(ValueError, match=r"there is no limit|needs a number above 0"):
        Limits.of([setting])


def test_every_limit_has_a_flag():
    for entry in dataclasses.fields(Limits):
        name = entry.name.replace("_", "-")
        assert f"--registry-limit={name}=N" in str(exceeded("too much", entry.name))
        Limits.of([f"{name}=7"])
