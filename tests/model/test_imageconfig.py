from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.model.imageconfig import (
    IMAGE_PURPOSES,
    ImageConfigError,
    Purpose,
    applied_refs,
    best_match,
    locate,
    rewrite,
    runtime_config,
)

IMAGE = "xpkg.crossplane.io/acme/provider-x:v1.0.0"


def config(name, *prefixes, **spec):
    return {
        "metadata": {"name": name},
        "spec": {"matchImages": [{"type": "Prefix", "prefix": p} for p in prefixes], **spec},
    }


def pull(secret):
    return {"registry": {"authentication": {"pullSecretRef": {"name": secret}}}}


def to(prefix):
    return {"rewriteImage": {"prefix": prefix}}


COSIGN = {"verification": {"provider": "Cosign", "cosign": {"authorities": []}}}
SERVING = {
    Purpose.REWRITE: to("mirror.example.com"),
    Purpose.PULL_SECRET: pull("creds"),
    Purpose.VERIFY: COSIGN,
    Purpose.RUNTIME: {"runtime": {"configRef": {"name": "big"}}},
}


@pytest.mark.parametrize("purpose", Purpose)
def test_only_configs_that_serve_the_purpose_are_considered(purpose):
    configs = [config(p.name.lower().replace("_", "-"), "xpkg.", **s) for p, s in SERVING.items()]
    match = best_match(configs, purpose, IMAGE)
    assert match is not None
    assert match.name == purpose.name.lower().replace("_", "-")
    assert match.applied(purpose) == {"name": match.name, "reason": purpose.value}


@pytest.mark.parametrize(
    ("configs", "image", "expected"),
    [
        ([config("a", "xpkg.", **pull("s"))], IMAGE, "a"),
        (
            [config("a", "xpkg.", **pull("s")), config("b", "xpkg.crossplane.io", **pull("s"))],
            IMAGE,
            "b",
        ),
        ([config("b", "xpkg.", **pull("s")), config("a", "xpkg.", **pull("s"))], IMAGE, "a"),
        (
            [
                config("b", "other", "xpkg.crossplane.io/acme", **pull("s")),
                config("a", "xpkg.", **pull("s")),
            ],
            IMAGE,
            "b",
        ),
        ([config("a", "xpkg.crossplane.io/ac", **pull("s"))], IMAGE, "a"),
        ([config("a", IMAGE, **pull("s"))], IMAGE, "a"),
        ([config("a", "XPKG.", **pull("s"))], IMAGE, None),
        ([config("a", "", **pull("s"))], IMAGE, None),
        ([config("a", "xpkg.", **pull(""))], IMAGE, None),
        ([config("a", "xpkg.", registry={})], IMAGE, None),
        ([config("a", "xpkg.", registry={"authentication": None})], IMAGE, None),
        ([config("a", "index.docker.io/", **pull("s"))], "docker.io/a/b:v1", None),
        ([], IMAGE, None),
    ],
)
def test_longest_prefix_wins_and_ties_go_to_the_first_name(configs, image, expected):
    match = best_match(configs, Purpose.PULL_SECRET, image)
    assert (match.name if match else None) == expected


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=2), st.lists(st.text("xy", max_size=4))),
    st.text("xy", max_size=6),
    st.randoms(),
)
def test_the_choice_does_not_depend_on_the_order_of_configs(prefixes, image, random):
    configs = [config(name, *fits, **pull("s")) for name, fits in prefixes.items()]
    chosen = best_match(configs, Purpose.PULL_SECRET, image)
    random.shuffle(configs)
    assert best_match(configs, Purpose.PULL_SECRET, image) == chosen
    fitting = [p for fits in prefixes.values() for p in fits if p and image.startswith(p)]
    assert (len(chosen.prefix) if chosen else 0) == max(map(len, fitting), default=0)


@pytest.mark.parametrize(
    ("prefix", "replacement", "image", "expected"),
    [
        ("xpkg.crossplane.io", "mirror.io", IMAGE, "mirror.io/acme/provider-x:v1.0.0"),
        ("xpkg.crossplane.io/", "mirror.io/x/", IMAGE, "mirror.io/x/acme/provider-x:v1.0.0"),
        (
            "xpkg.crossplane.io/acme",
            "mirror.io",
            "xpkg.crossplane.io/acme/a",
            "mirror.io/a",
        ),
        ("nothing", "mirror.io", IMAGE, IMAGE),
    ],
)
def test_rewrite_replaces_the_prefix(prefix, replacement, image, expected):
    text, match = rewrite([config("a", prefix, **to(replacement))], image)
    assert text == expected
    assert (match is not None) == (expected != image)


def test_rewrites_are_not_chained():
    configs = [config("a", "xpkg.", **to("m.")), config("b", "m.", **to("n."))]
    assert rewrite(configs, "xpkg.io/a:v1")[0] == "m.io/a:v1"


def test_rewrite_without_new_prefix_is_refused_with_the_config_named():
    with pytest.raises(ImageConfigError, match=r"rewrite prefix is missing.*ImageConfig \"a\""):
        rewrite([config("a", "xpkg.", **to(""))], IMAGE)


def test_secret_and_verification_follow_from_the_rewritten_image():
    configs = [
        config("rewriter", "xpkg.crossplane.io", **to("mirror.io")),
        config("original", "xpkg.crossplane.io", **pull("wrong"), **COSIGN),
        config("mirror", "mirror.io", **pull("right")),
        config("signed", "mirror.io/acme", **COSIGN),
    ]
    located = locate(configs, IMAGE)
    assert located.image == "mirror.io/acme/provider-x:v1.0.0"
    assert (located.pull_secret, located.verification) == ("right", "signed")
    assert located.applied == (
        {"name": "rewriter", "reason": "RewriteImage"},
        {"name": "mirror", "reason": "SetImagePullSecret"},
        {"name": "signed", "reason": "VerifyImage"},
    )


def test_an_image_that_nothing_matches_stays_as_it_is():
    located = locate([], IMAGE)
    assert (located.image, located.pull_secret, located.verification) == (IMAGE, None, None)
    assert located.applied == ()


@pytest.mark.parametrize("verification", [{}, {"provider": "Cosign"}, {"cosign": None}])
def test_verification_without_policy_is_refused_and_never_skipped(verification):
    with pytest.raises(ImageConfigError, match="cosign verification config is missing"):
        locate([config("a", "xpkg.", verification=verification)], IMAGE)


def test_runtime_config_replaces_the_reference_where_one_is_named():
    reference = {"apiVersion": "pkg.crossplane.io/v1beta1", "kind": "X", "name": "big"}
    found = runtime_config([config("a", "xpkg.", runtime={"configRef": reference})], IMAGE)
    assert found is not None
    assert found[0] == reference
    assert found[1].applied(Purpose.RUNTIME) == {"name": "a", "reason": "ConfigureRuntime"}


@pytest.mark.parametrize("runtime", [{}, {"configRef": {}}, {"configRef": {"name": ""}}])
def test_runtime_without_reference_changes_nothing(runtime):
    assert runtime_config([config("a", "xpkg.", runtime=runtime)], IMAGE) is None


def test_a_stage_replaces_only_the_entries_it_speaks_for():
    present = [
        {"name": "old", "reason": "RewriteImage"},
        {"name": "r", "reason": "ConfigureRuntime"},
        {"name": "gone", "reason": "VerifyImage"},
    ]
    used = [{"name": "new", "reason": "RewriteImage"}]
    assert applied_refs(present, used, owned=IMAGE_PURPOSES) == [
        {"name": "r", "reason": "ConfigureRuntime"},
        {"name": "new", "reason": "RewriteImage"},
    ]
    assert applied_refs(present, [], owned={Purpose.RUNTIME}) == [present[0], present[2]]
