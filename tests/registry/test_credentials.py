import base64
import json

import pytest

from controller.registry.credentials import (
    Credential,
    Keychain,
    describe,
    read_entry,
)
from controller.registry.failures import AuthError
from controller.registry.matching import matches, normalise_key
from controller.registry.reference import parse_reference
from tests.fakes.registry import Reply, bearer, error, serve
from tests.registry.conftest import keychain


def b64(text) -> str:
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def secret(auths, name="pull", kind="kubernetes.io/dockerconfigjson", key=".dockerconfigjson"):
    content = {"auths": auths} if key == ".dockerconfigjson" else auths
    data = content if isinstance(content, str) else json.dumps(content)
    return {
        "metadata": {"namespace": "crossplane-system", "name": name},
        "type": kind,
        "data": {key: b64(data)},
    }


def login(user="user", password="pw"):
    return {"auth": b64(f"{user}:{password}")}


def ref(text="reg.io/acme/demo:v1"):
    return parse_reference(text, strict=False)


async def found(*secrets, text="reg.io/acme/demo:v1"):
    credentials = await Keychain.from_pull_secrets(secrets).credentials_for(ref(text))
    return [(credential.username, credential.password) for credential in credentials]


@pytest.mark.parametrize(
    ("key", "normal"),
    [
        ("reg.io", "reg.io"),
        ("https://reg.io", "reg.io"),
        ("http://reg.io/", "reg.io"),
        ("https://reg.io/v1/", "reg.io"),
        ("https://reg.io/v2/", "reg.io"),
        ("https://reg.io/v2/acme", "reg.io/acme"),
        ("https://reg.io/v1", "reg.io/v1"),
        ("reg.io:5000/a/b", "reg.io:5000/a/b"),
        ("REG.io", "reg.io"),
        ("https://index.docker.io/v1/", "index.docker.io"),
        ("docker.io", "index.docker.io"),
        ("registry-1.docker.io", "index.docker.io"),
        ("docker.io/acme", "index.docker.io/acme"),
        ("[::1]:5000", "[::1]:5000"),
        ("*.reg.io", "*.reg.io"),
    ],
)
def test_keys_are_normalised(key, normal):
    assert normalise_key(key) == normal


@pytest.mark.parametrize(
    ("key", "text", "matching"),
    [
        ("reg.io", "reg.io/acme/demo:v1", True),
        ("reg.io", "sub.reg.io/acme/demo:v1", False),
        ("reg.io", "reg.io:443/acme/demo:v1", False),
        ("reg.io:443", "reg.io/acme/demo:v1", False),
        ("reg.io:5000", "reg.io:5000/acme/demo:v1", True),
        ("reg.io/acme", "reg.io/acme/demo:v1", True),
        ("reg.io/ac", "reg.io/acme/demo:v1", True),
        ("reg.io/other", "reg.io/acme/demo:v1", False),
        ("reg.io/acme/demo/more", "reg.io/acme/demo:v1", False),
        ("*.reg.io", "sub.reg.io/acme/demo:v1", True),
        ("*.reg.io", "a.b.reg.io/acme/demo:v1", False),
        ("*.reg.io", "reg.io/acme/demo:v1", False),
        ("*.*.io", "sub.reg.io/acme/demo:v1", True),
        ("**.reg.io", "sub.reg.io/a/demo:v1", True),
        ("s?b.reg.io", "sub.reg.io/a/demo:v1", True),
        ("[a-t]ub.reg.io", "sub.reg.io/a/demo:v1", True),
        ("[^a-t]ub.reg.io", "sub.reg.io/a/demo:v1", False),
        ("[.reg.io", "sub.reg.io/a/demo:v1", False),
        ("[]a]ub.reg.io", "aub.reg.io/a/demo:v1", False),
        ("[]s]ub.reg.io", "sub.reg.io/a/demo:v1", False),
        ("[s-]ub.reg.io", "sub.reg.io/a/demo:v1", False),
        ("[-s]ub.reg.io", "sub.reg.io/a/demo:v1", False),
        ("[z-as]ub.reg.io", "sub.reg.io/a/demo:v1", True),
        ("[z-a]ub.reg.io", "sub.reg.io/a/demo:v1", False),
        ("[^z-a]ub.reg.io", "sub.reg.io/a/demo:v1", True),
        ("[!s]ub.reg.io", "sub.reg.io/a/demo:v1", True),
        ("[[s]ub.reg.io", "sub.reg.io/a/demo:v1", True),
        ("[\\s]ub.reg.io", "sub.reg.io/a/demo:v1", True),
        ("[^\\^]ub.reg.io", "sub.reg.io/a/demo:v1", True),
        ("sub\\", "sub.reg.io/a/demo:v1", False),
        ("su\\b.reg.io", "sub.reg.io/a/demo:v1", True),
        ("reg.io:0443", "reg.io:443/acme/demo:v1", False),
        ("reg.io:" + "0" * 5000, "reg.io:443/acme/demo:v1", False),
        ("reg.io/acme/", "reg.io/acme/demo:v1", True),
        ("**.*.io", "sub.reg.io/a/demo:v1", True),
        ("r\\eg.io", "reg.io/a/demo:v1", True),
        ("[::1]:5000", "[::1]:5000/acme/demo:v1", True),
        ("index.docker.io", "ubuntu", True),
        ("index.docker.io/library", "ubuntu", True),
        ("reg.io", "REG.IO/acme/demo:v1", True),
    ],
)
def test_keys_match_as_kubernetes_matches_them(key, text, matching):
    assert matches(key, ref(text)) is matching


def test_a_long_pattern_is_matched_quickly():
    assert not matches("*a" * 40 + ".io", ref("a" * 30 + "b.io/x:v1"))


async def test_the_longest_key_comes_first_and_all_are_tried():
    one = secret({"reg.io": login("host"), "reg.io/acme": login("path"), "*.io": login("glob")})
    assert await found(one) == [("path", "pw"), ("host", "pw"), ("glob", "pw")]


async def test_secrets_with_one_key_keep_their_order():
    secrets = [secret({"reg.io": login(name)}, name) for name in ("b", "a")]
    assert await found(*secrets) == [("b", "pw"), ("a", "pw")]


async def test_equal_credentials_are_tried_once_and_at_most_five():
    same = [secret({"reg.io": login()}, name) for name in ("a", "b")]
    assert await found(*same) == [("user", "pw")]
    many = [secret({"reg.io": login(f"u{n}")}, f"s{n}") for n in range(9)]
    assert len(await found(*many)) == 5


async def test_both_kinds_of_pull_secrets_are_read():
    old = secret({"reg.io": login("old")}, kind="kubernetes.io/dockercfg", key=".dockercfg")
    assert await found(old) == [("old", "pw")]


@pytest.mark.parametrize(
    "key", ["docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"]
)
async def test_docker_hub_has_many_names(key):
    assert await found(secret({key: login()}), text="acme/demo:v1") == [("user", "pw")]


async def test_nothing_matches_nothing():
    assert await found(secret({})) == []
    assert await found(secret({"other.io": login()})) == []
    assert await found(secret({"reg.io": {}})) == []
    assert await found() == []


@pytest.mark.parametrize(
    ("entry", "credential"),
    [
        ({"auth": b64("u:p:w")}, ("u", "p:w")),
        ({"auth": b64("u:pw").rstrip("=")}, ("u", "pw")),
        ({"auth": f" {b64('u:pw')}\n"}, ("u", "pw")),
        ({"auth": b64("u:pw\0\0")}, ("u", "pw")),
        ({"auth": b64("u:pw"), "username": "other", "password": "x"}, ("u", "pw")),
        ({"username": "u", "password": "pw"}, ("u", "pw")),
        ({"username": "u"}, ("u", "")),
        ({"auth": "", "username": "u"}, ("u", "")),
        ({"auth": b64("ü:päss")}, ("ü", "päss")),
        ({"email": 5, "username": "u"}, ("u", "")),
    ],
)
def test_entries_are_read(entry, credential):
    read = read_entry(entry, origin="here")
    assert (read.username, read.password) == credential


def test_tokens_are_read():
    read = read_entry({"identitytoken": "id", "registrytoken": "reg"}, origin="here")
    assert (read.identity_token, read.registry_token) == ("id", "reg")


@pytest.mark.parametrize(
    "entry",
    [
        {"auth": b64("without-colon")},
        {"auth": "***"},
        {"auth": "a"},
        {"auth": b64(b"\xff\xfe:x")},
        {"auth": 5},
        {"username": ["u"]},
        {"username": "\ud800"},
        {"registrytoken": "a\nb"},
        {"registrytoken": "ä"},
        {"username": "a\rb"},
        "text",
        None,
    ],
)
async def test_t90_a_matching_entry_that_cannot_be_read_is_an_error_that_names_it(entry):
    keys = Keychain.from_pull_secrets([secret({"reg.io": entry})])
    with pytest.raises(AuthError, match=r"secret crossplane-system/pull, key \.dockerconfigjson"):
        await keys.credentials_for(ref())
    assert await keys.credentials_for(ref("other.io/a:v1")) == []


@pytest.mark.parametrize(
    ("broken", "note"),
    [
        ({"type": "Opaque"}, "is of type Opaque"),
        ({"type": None}, "not a pull secret"),
        ({"data": {}}, "has no .dockerconfigjson"),
        ({"data": None}, "has no .dockerconfigjson"),
        ({"data": {".dockerconfigjson": b64("{")}}, "no valid JSON"),
        ({"data": {".dockerconfigjson": "***"}}, "no valid JSON"),
        ({"data": {".dockerconfigjson": b64(b"\xff")}}, "no valid JSON"),
        ({"data": {".dockerconfigjson": b64("[]")}}, "does not list registries"),
        ({"data": {".dockerconfigjson": b64('{"auths":[]}')}}, "does not list registries"),
        ({"data": {".dockerconfigjson": "A" * 3_000_000}}, "larger than"),
        ({"data": {".dockerconfigjson": b64("[" * 100_000)}}, "no valid JSON"),
        ({"data": {".dockerconfigjson": b64('{"auths":' + "1" * 5000 + "}")}}, "no valid JSON"),
        ({"data": {".dockerconfigjson": 5}}, "has no .dockerconfigjson"),
        (secret({f"r{n}.io": {} for n in range(2001)}), "lists more than 2000 registries"),
    ],
)
async def test_t90_an_unreadable_secret_is_noted_and_the_others_are_used(broken, note):
    keys = Keychain.from_pull_secrets(
        [secret({}) | broken, secret({"reg.io": login()}, "good")], missing=["ns/gone"]
    )
    [credential] = await keys.credentials_for(ref())
    assert credential.username == "user"
    assert keys.notes[0] == "secret ns/gone does not exist"
    assert note in keys.notes[1]


async def test_t91_helpers_that_a_secret_names_are_never_run():
    config = secret({"reg.io": login()})
    content = {
        "auths": {"reg.io": login()},
        "credHelpers": {"reg.io": "evil"},
        "credsStore": "evil",
    }
    config["data"][".dockerconfigjson"] = b64(json.dumps(content))
    assert await found(config) == [("user", "pw")]


@pytest.mark.parametrize("broken", [{"auth": "***"}, {"username": 5}, "text"])
async def test_t90_nothing_is_asked_with_an_entry_that_cannot_be_read(
    fake, server, client, image, broken
):
    fake.add_image("acme/demo", b"layer")
    keys = Keychain.from_pull_secrets([secret({server.address: broken})])
    with pytest.raises(AuthError, match=f"entry {server.address}") as raised:
        await client.resolve(image, keys)
    assert str(raised.value).startswith(f"{server.address}/acme/demo:v1: secret crossplane-system/")
    assert server.requests == []


async def test_t90_a_secret_as_large_as_secrets_are_is_read():
    auths = {f"r{n}.io/{'a' * 480}": login() for n in range(1900)} | {"reg.io": login("found")}
    large = secret(auths)
    assert len(large["data"][".dockerconfigjson"]) > 1024 * 1024
    assert await found(large) == [("found", "pw")]


async def test_a_key_of_any_text_does_no_harm():
    assert await found(secret({"\ud800.io": login(), "reg.io": login(), "[": login()})) == [
        ("user", "pw")
    ]


async def test_the_last_of_equal_keys_counts():
    text = '{"auths": {"reg.io": {"username": "one"}, "reg.io": {"username": "two"}}}'
    twice = secret({}) | {"data": {".dockerconfigjson": b64(text)}}
    assert await found(twice) == [("two", "")]


async def test_a_password_inside_a_key_never_shows():
    keys = Keychain.from_pull_secrets([secret({"https://user:word1@reg.io": login()})])
    assert "word1" not in str([source.entries[0].origin for source in keys.sources])  # type: ignore[attr-defined]  # a test looks inside
    assert "entry reg.io" in keys.sources[0].entries[0].origin  # type: ignore[attr-defined]  # as above


async def test_what_is_said_about_credentials_is_bounded():
    many = [f"secret ns/{'x' * 250}-{n} does not exist" for n in range(50)]
    assert len(describe([], many)) <= 800


async def test_t94_a_token_is_used_until_it_is_refused_and_then_the_new_secret(
    fake, server, client, image
):
    digest = fake.add_image("acme/demo", b"layer")
    valid = Credential("old", "pw1"), Credential("new", "pw2")
    right = [valid[0]]

    async def tokens(request):
        if request.authorization != right[0].basic:
            return error(401, "UNAUTHORIZED", "who are you")
        body = json.dumps({"token": f"for-{right[0].username}", "expires_in": 300}).encode()
        return Reply(200, (("Content-Type", "application/json"),), body)

    def keys(user, password):
        return Keychain.from_pull_secrets([secret({server.address: login(user, password)})])

    async with serve(tokens) as realm:
        accepted = ["Bearer for-old"]
        challenge = bearer(f"http://{realm.address}/token")
        fake.on("*", "", lambda r, reply: reply if r.authorization in accepted else challenge)
        old = keys("old", "pw1")
        assert await client.resolve(image, old) == digest
        right[0] = valid[1]
        # The registry still takes the token that the old secret was traded for.
        assert await client.resolve(image, old) == digest
        assert len(realm.requests) == 1
        accepted[0] = "Bearer for-new"
        with pytest.raises(AuthError, match="tried secret crossplane-system/pull") as raised:
            await client.resolve(image, old)
        assert "pw1" not in str(raised.value)
        assert await client.resolve(image, keys("new", "pw2")) == digest
    sent = [request.authorization for request in realm.requests]
    assert set(sent) == {valid[0].basic, valid[1].basic}
    assert all("Basic" not in (request.authorization or "") for request in server.requests)


def test_secrets_never_show():
    credential = Credential("user", "password1", "identity1", "registry1", "secret ns/name")
    for text in (repr(credential), str(credential), f"{credential}"):
        assert text == "Credential('secret ns/name')"
    held = Keychain.from_pull_secrets([secret({"reg.io": login("user", "password1")})])
    assert "password1" not in repr(held)
    assert b64("user:password1") not in repr(held)


def test_fingerprints_tell_secrets_apart():
    assert Credential("a", "b").fingerprint == Credential("a", "b", origin="x").fingerprint
    assert Credential("a", "bc").fingerprint != Credential("ab", "c").fingerprint
    assert Credential("a", "b").basic == "Basic YTpi"


async def test_keychains_are_combined_in_order():
    first, second = Credential("1", "x", origin="one"), Credential("2", "x", origin="two")
    both = Keychain.combine(keychain(first), keychain(second))
    assert await both.credentials_for(ref()) == [first]
    both = Keychain.combine(Keychain.from_pull_secrets([secret({})]), keychain(second))
    assert await both.credentials_for(ref()) == [second]
    assert await Keychain.anonymous().credentials_for(ref()) == []


def test_what_was_tried_is_described():
    one = Credential("u", "p", origin="secret ns/a")
    assert describe([one, one], []) == "tried secret ns/a"
    assert describe([], ["secret ns/b does not exist"]) == (
        "no credentials matched (secret ns/b does not exist)"
    )
