"""``pull``: what is refused before anything is asked for; the rest is in ``tests/xpkg``."""

from __future__ import annotations

import pytest

from controller.cli.images import image_source
from controller.cli.session import UsageError


@pytest.mark.parametrize(
    ("text", "source", "tag", "digest"),
    [
        ("registry.example.com/acme/nop:v1", "registry.example.com/acme/nop", "v1", None),
        ("127.0.0.1:5000/nop:v1", "127.0.0.1:5000/nop", "v1", None),
        (f"r.io/nop@sha256:{'a' * 64}", "r.io/nop", None, f"sha256:{'a' * 64}"),
        (f"r.io/nop:v1@sha256:{'a' * 64}", "r.io/nop", "v1", f"sha256:{'a' * 64}"),
    ],
)
def test_a_tag_or_a_digest_is_pulled(text, source, tag, digest):
    reference = image_source(text)
    assert (reference.source, reference.tag, reference.digest) == (source, tag, digest)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("nop", "it names no registry"),
        ("acme/nop:v1", "it names no registry"),
        ("r.io/nop", "it names no tag or digest"),
        ("r.io/nop:", '"" is no tag'),
        ("r.io/nop@sha256:abc", "digest"),
        ("r.io/NOP:v1", '"NOP" is no repository path'),
    ],
)
def test_another_reference_is_refused_with_what_is_missing(crossdock, text, part):
    with pytest.raises(UsageError) as caught:
        image_source(text)
    assert str(caught.value).startswith(f'failed to parse image reference "{text}": ')
    assert part in str(caught.value)
    assert crossdock("pull", text).code == 2
