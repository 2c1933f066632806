"""The words that people type."""

from __future__ import annotations

import pytest

from controller.cli.names import (
    address,
    check_name,
    default_name,
    duration,
    duration_text,
    find_kind,
    full_name,
    installable,
    kind_named,
    split_list,
)
from controller.cli.session import UsageError
from controller.model.objects import CONFIGURATION, FUNCTION, NAMESPACE, PROVIDER


@pytest.mark.parametrize(
    ("word", "resource"),
    [
        ("provider", PROVIDER),
        ("Provider", PROVIDER),
        ("providers", PROVIDER),
        ("providers.pkg.crossplane.io", PROVIDER),
        ("provider.v1.pkg.crossplane.io", PROVIDER),
        ("function", FUNCTION),
        ("CONFIGURATIONS", CONFIGURATION),
    ],
)
def test_a_kind_is_taken_as_kubectl_takes_it(word, resource):
    assert find_kind(word) is resource
    assert kind_named(word) is resource


@pytest.mark.parametrize("word", ["", "s", "providerss", "crd", "provider.example.org", "pkg"])
def test_another_word_is_no_kind(word):
    assert find_kind(word) is None
    with pytest.raises(UsageError) as caught:
        kind_named(word)
    assert str(caught.value) == (
        f'expected one of "configuration", "function", "provider" but got "{word}"'
    )


def test_a_full_name_is_what_kubectl_prints():
    assert full_name(PROVIDER, "nop") == "provider.pkg.crossplane.io/nop"
    assert full_name(NAMESPACE, "x") == "namespace/x"


@pytest.mark.parametrize("name", ["a", "provider-nop", "my.pkg", "1st", "a" * 63])
def test_a_legal_name_is_returned(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("", "no legal object name"),
        ("../x", "no legal object name"),
        ("a/b", "no legal object name"),
        ("Nop", "no legal object name"),
        ("nop-", "no legal object name"),
        ("a..b", "no legal object name"),
        ("bar@sha256", "no legal object name"),
        ("a" * 64, "64 characters"),
    ],
)
def test_an_illegal_name_is_refused_with_the_reason(name, part):
    with pytest.raises(UsageError, match=part):
        check_name(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "xpkg.crossplane.io/crossplane-contrib/provider-nop:v1",
            "crossplane-contrib-provider-nop",
        ),
        ("127.0.0.1:5000/foo/bar:v1", "foo-bar"),
        (f"registry.example.com/foo/bar@sha256:{'a' * 64}", "foo-bar"),
        (f"registry.example.com/foo/bar:v1@sha256:{'a' * 64}", "foo-bar"),
        ("registry.example.com/foo/my_pkg:v1", "foo-mypkg"),
    ],
)
def test_a_default_name_is_the_repository_as_a_label(text, name):
    assert default_name(installable(text)) == name


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("provider-nop", '"provider-nop" names no registry'),
        ("crossplane/provider-nop:v1", '"crossplane" in'),
        ("localhost:5000/foo/bar:v1", "127.0.0.1:5000"),
        ("registry.example.com/foo/bar", "names neither a tag nor a sha256 digest"),
        ("registry.example.com/foo/bar:", "names neither a tag nor a sha256 digest"),
        ("registry.example.com/Foo/bar:v1", "invalid package image identifier"),
        ("registry.example.com/foo/bar@sha256:abc", "invalid package image identifier"),
    ],
)
def test_a_reference_that_cannot_be_installed_names_the_missing_part(text, part):
    with pytest.raises(UsageError) as caught:
        installable(text)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("250ms", 0.25),
    ],
)
def test_a_duration_is_read_as_go_reads_it(text, seconds):
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "-5m", "5mm", "5m3", "x5m", "1d"])
def test_another_text_is_no_duration(text):
    with pytest.raises(UsageError, match="is no duration: write for example 90s, 5m or 1h30m"):
        duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.25s"),
        (9.87, "9.87s"),
        (45.4, "45s"),
        (60, "1m"),
        (125, "2m5s"),
        (3600, "1h"),
        (3780, "1h3m"),
    ],
)
def test_seconds_are_shown_as_people_read_them(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8081", ("127.0.0.1", 8081)),
        (":8081", ("0.0.0.0", 8081)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:8081", ("::1", 8081)),
        ("none", None),
    ],
)
def test_an_address_is_host_and_port(text, expected):
    assert address(text, "--health-address") == expected


@pytest.mark.parametrize("text", ["", "8081", "host", "host:", "host:x", "host:65536", "host:-1"])
def test_another_text_is_no_address(text):
    with pytest.raises(UsageError, match='--health-address: expected HOST:PORT or "none"'):
        address(text, "--health-address")


def test_a_list_is_repeatable_and_takes_commas():
    assert split_list(["a,b", " c ", "", ",d,"]) == ("a", "b", "c", "d")
