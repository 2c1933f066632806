import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.registry.failures import RegistryError
from controller.registry.reference import (
    InvalidReference,
    Reference,
    is_digest,
    parse_reference,
    split_host_port,
)

SHA = "a" * 64
HUB = "index.docker.io"


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("ubuntu", HUB, "library/ubuntu", "latest", None),
        ("docker.io/ubuntu:22.04", HUB, "library/ubuntu", "22.04", None),
        ("index.docker.io/a/b", HUB, "a/b", "latest", None),
        ("registry-1.docker.io/a/b:v1", HUB, "a/b", "v1", None),
        ("localhost/a", "localhost", "a", "latest", None),
        ("localhost:5000/a/b:v1", "localhost:5000", "a/b", "v1", None),
        (f"reg.io:443/a@sha256:{SHA}", "reg.io:443", "a", None, f"sha256:{SHA}"),
        (f"reg.io/a:v1@sha256:{SHA}", "reg.io", "a", "v1", f"sha256:{SHA}"),
        (f"reg.io/a@sha512:{SHA}{SHA}", "reg.io", "a", None, f"sha512:{SHA}{SHA}"),
        ("[::1]:5000/a:v1", "[::1]:5000", "a", "v1", None),
        ("127.0.0.1:5000/a", "127.0.0.1:5000", "a", "latest", None),
        ("10.0.0.5/a", "10.0.0.5", "a", "latest", None),
        ("foo/bar:baz", HUB, "foo/bar", "baz", None),
        ("foo.bar/baz", "foo.bar", "baz", "latest", None),
        ("Foo/bar", "Foo", "bar", "latest", None),
        ("a:5000/b", "a:5000", "b", "latest", None),
        ("a:5000", HUB, "library/a", "5000", None),
        ("reg.io/a__b--c.d/e_f", "reg.io", "a__b--c.d/e_f", "latest", None),
        ("reg.io/" + "a" * 255, "reg.io", "a" * 255, "latest", None),
        ("reg.io/a:" + "x" * 128, "reg.io", "a", "x" * 128, None),
    ],
)
def test_references_are_taken_apart(text, registry, repository, tag, digest):
    found = parse_reference(text, strict=False)
    assert (found.registry, found.repository, found.tag, found.digest) == (
        registry,
        repository,
        tag,
        digest,
    )
    assert found.source == f"{registry}/{repository}"
    assert found.original == text


INVALID = [
    "",
    ":v1",
    "a:",
    "a@",
    "a@sha256:zz",
    f"a@md5:{SHA[:32]}",
    f"a@sha256:{SHA[1:]}",
    f"a@sha256:{SHA.upper()}",
    f"a@SHA256:{SHA}",
    "a/B:v1",
    "a__ _b",
    "a/",
    "/a",
    "a//b",
    "a/./b",
    "a/../b",
    "-a/b",
    "a:b:c",
    "a@x@y",
    f"a@sha256:{SHA}@sha256:{SHA}",
    "reg.io/a:" + "x" * 129,
    "reg.io/" + "a" * 256,
    "https://reg.io/a",
    "reg.io/a?x=1",
    "reg.io/a#x",
    "reg.io/%2e%2e/a",
    "user@reg.io/a:v1",
    "user:pw@reg.io/a:v1",
    "reg.io/a:v1\n",
    "reg.io/a\0:v1",
    " reg.io/a:v1",
    "reg.io/ä:v1",
    "reg.io:0/a:v1",
    "reg.io:65536/a:v1",
    "reg.io:port/a:v1",
    "reg..io/a:v1",
    "-reg.io/a:v1",
    "[::1%eth0]:5000/a:v1",
    "[::1/a:v1",
    "[zz]:5000/a",
    "::1/a:v1",
    SHA,
    "x" * 2000,
]


@pytest.mark.parametrize("text", INVALID)
def test_what_follows_no_grammar_is_refused(text):
    with pytest.raises(InvalidReference) as raised:
        parse_reference(text, strict=False)
    message = str(raised.value)
    assert message.startswith("could not parse reference: ")
    assert message.isprintable()
    assert len(message) < 1024
    assert raised.value.final


def test_the_error_names_the_text_and_the_fault():
    with pytest.raises(InvalidReference, match="could not parse reference: :test: the repository"):
        parse_reference(":test", strict=False)
    with pytest.raises(InvalidReference, match='"md5" is no supported digest algorithm'):
        parse_reference("reg.io/a@md5:abc")


@pytest.mark.parametrize(
    "text", ["foo/bar:v1", "A/b:v1", "localhost:5000/x:y", "reg.io/a", "ubuntu:22.04"]
)
def test_strict_references_name_registry_and_version(text):
    parse_reference(text, strict=False)
    with pytest.raises(InvalidReference):
        parse_reference(text)


@pytest.mark.parametrize("text", ["127.0.0.1:5000/x:y", "reg.localhost:5000/x:y", "reg.io/a/b:v1"])
def test_strict_references_are_those_that_crossplane_accepts(text):
    assert parse_reference(text).original == text


def test_another_default_registry_can_be_given():
    found = parse_reference("acme/demo:v1", strict=False, default_registry="xpkg.example.org")
    assert found.source == "xpkg.example.org/acme/demo"


def test_the_digest_wins_and_the_tag_stays_for_people():
    found = parse_reference(f"reg.io/a:v1@sha256:{SHA}")
    assert found.identifier == f"sha256:{SHA}"
    assert found.source == "reg.io/a"


def test_docker_hub_answers_under_another_host():
    assert parse_reference("ubuntu", strict=False).host == "registry-1.docker.io"
    assert parse_reference("Reg.IO:5000/a:v1").host == "reg.io:5000"


def test_pinning_takes_digests_only():
    found = parse_reference("reg.io/a:v1")
    assert str(found.with_digest(f"sha256:{SHA}")) == f"reg.io/a:v1@sha256:{SHA}"
    with pytest.raises(InvalidReference):
        found.with_digest("sha256:../../etc")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("reg.io", "reg.io", None),
        ("reg.io:5000", "reg.io", 5000),
        ("[::1]", "::1", None),
        ("[::1]:5000", "::1", 5000),
        ("::1", "::1", None),
        ("reg.io:x", "reg.io:x", None),
    ],
)
def test_hosts_and_ports_are_split(text, host, port):
    assert split_host_port(text) == (host, port)


component = st.from_regex(r"[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+){0,3}", fullmatch=True)
host = st.from_regex(
    r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,4})?(\.[a-z][a-z0-9]{0,6}){1,3}", fullmatch=True
)


@st.composite
def references(draw: st.DrawFn) -> str:
    port = draw(st.none() | st.integers(1, 65535))
    name = draw(host) + (f":{port}" if port else "")
    path = "/".join(draw(st.lists(component, min_size=1, max_size=4)))[:255].rstrip("/._-")
    tag = draw(st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True))
    digest = draw(st.none() | st.text("0123456789abcdef", min_size=64, max_size=64))
    if tag is None and digest is None:
        tag = "v1"
    return f"{name}/{path}" + (f":{tag}" if tag else "") + (f"@sha256:{digest}" if digest else "")


@given(references())
def test_what_is_printed_is_what_was_parsed(text):
    found = parse_reference(text)
    again = parse_reference(str(found))
    assert again.source == found.source
    assert (again.tag, again.digest) == (found.tag, found.digest)
    if found.registry != HUB:
        assert str(found) == text


@given(st.text(max_size=80) | st.text(string.ascii_lowercase + ":/@.-_[]0%", max_size=40))
def test_any_text_is_a_safe_reference_or_an_error(text):
    try:
        found = parse_reference(text, strict=False)
    except RegistryError as refusal:
        said = str(refusal)
        found = None
    if found is None:
        assert said.isprintable()
        return
    assert isinstance(found, Reference)
    parts = found.repository.split("/")
    assert all(part and part.strip(".") == part for part in parts)
    for part in (found.repository, found.registry, found.tag or "a"):
        assert part.isascii()
        assert not set(part) & set(" %?#@\\\n\r\0")
    assert found.digest is None or is_digest(found.digest)
