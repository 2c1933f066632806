import asyncio
import base64
import dataclasses
import json
from urllib.parse import parse_qs, urlsplit

import pytest

from controller.registry.credentials import Credential, Keychain
from controller.registry.failures import AuthError, PolicyViolation, RegistryUnavailable
from controller.registry.grants import read_token
from controller.registry.reference import parse_reference
from tests.fakes.registry import FakeRegistry, Reply, basic, bearer, error, serve
from tests.registry.certificates import Authority
from tests.registry.conftest import ANONYMOUS, connected, keychain
from tests.registry.network import Network

ALICE = Credential("alice", "pw-alice", origin="secret ns/alice")
BOB = Credential("bob", "pw-bob", origin="secret ns/bob")


class TokenServer:
    """Gives tokens to those it knows; tokens name their holder and scope."""

    def __init__(self, *known: Credential, anonymous: bool = True) -> None:
        self.known = {credential.basic: credential.username for credential in known}
        self.anonymous = anonymous
        self.life = 300
        self.given = 0

    async def __call__(self, request):
        query = parse_qs(urlsplit(request.target).query)
        scope = " ".join(query.get("scope", []))
        holder = self.known.get(request.authorization or "")
        if holder is None and (request.authorization or not self.anonymous):
            return error(401, "UNAUTHORIZED", "who are you")
        self.given += 1
        token = f"{holder or 'nobody'}|{scope}|{self.given}".replace(" ", "_")
        body = json.dumps({"token": token, "expires_in": self.life}).encode()
        return Reply(200, (("Content-Type", "application/json"),), body)


def protect(fake: FakeRegistry, realm: str, *allowed: str, scope: str = "pull") -> None:
    """Let a registry ask for tokens, and take those of some holders."""

    def check(request, reply):
        kind, _, token = (request.authorization or "").partition(" ")
        holder, _, rest = token.partition("|")
        if kind == "Bearer" and holder in allowed and scope in rest:
            return reply
        return bearer(realm, scope=f"repository:acme/demo:{scope}")

    fake.on("*", "", check)


@pytest.fixture
def digest(fake):
    return fake.add_image("acme/demo", b"layer")


def authorizations(server):
    return [request.authorization for request in server.requests]


async def test_an_anonymous_token_is_fetched_once_and_kept(fake, server, client, image, digest):
    tokens = TokenServer()
    async with serve(tokens) as realm:
        protect(fake, f"http://{realm.address}/token?keep=this", "nobody")
        assert await client.resolve(image, ANONYMOUS) == digest
        assert await client.resolve(image, ANONYMOUS) == digest
        await client.tags(image, ANONYMOUS)
    [asked] = realm.requests
    assert parse_qs(urlsplit(asked.target).query) == {
        "keep": ["this"],
        "service": ["fake"],
        "scope": ["repository:acme/demo:pull"],
    }
    assert asked.authorization is None
    assert authorizations(server)[0] is None
    assert len(server.requests) == 4


async def test_a_token_is_asked_for_once_however_many_wait(fake, server, client, image, digest):
    tokens = TokenServer()

    async def slowly(request):
        await asyncio.sleep(0.05)
        return await tokens(request)

    async with serve(slowly) as realm:
        protect(fake, f"http://{realm.address}/token", "nobody")
        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(client.resolve(image, ANONYMOUS))
        assert len(realm.requests) == 1


async def test_an_expired_token_is_replaced(fake, server, client, image, digest, pauses):
    tokens = TokenServer()
    async with serve(tokens) as realm:
        protect(fake, f"http://{realm.address}/token", "nobody")
        await client.resolve(image, ANONYMOUS)
        pauses.now += 291
        await client.resolve(image, ANONYMOUS)
        assert len(realm.requests) == 2
    assert len(server.requests) == 3


async def test_a_token_that_is_refused_early_is_replaced_once(fake, server, client, image, digest):
    tokens = TokenServer()
    async with serve(tokens) as realm:
        protect(fake, f"http://{realm.address}/token", "nobody")
        await client.resolve(image, ANONYMOUS)
        fake.on("*", "", bearer(f"http://{realm.address}/token"), times=1)
        assert await client.resolve(image, ANONYMOUS) == digest
        assert len(realm.requests) == 2


async def test_t26_a_registry_never_satisfied_is_an_error(fake, server, client, image, digest):
    async with serve(TokenServer()) as realm:
        fake.on("*", "", bearer(f"http://{realm.address}/token"))
        with pytest.raises(AuthError, match=r"HTTP 401.*no credentials matched") as raised:
            await client.resolve(image, ANONYMOUS)
        assert len(realm.requests) <= 3
    assert raised.value.status == 401
    assert len(server.requests) <= 4


async def test_a_narrow_token_is_widened_once(fake, server, client, image, digest):
    async with serve(TokenServer()) as realm:
        wanted = "repository:acme/demo:pull repository:acme/base:pull"
        realm_url = f"http://{realm.address}/token"

        def check(request, reply):
            has = "acme/base" in (request.authorization or "")
            return reply if has else bearer(realm_url, scope=wanted)

        fake.on("*", "", check)
        assert await client.resolve(image, ANONYMOUS) == digest


async def test_the_credentials_of_the_registry_are_traded_for_a_token(
    fake, server, client, image, digest
):
    async with serve(TokenServer(ALICE)) as realm:
        protect(fake, f"http://{realm.address}/token", "alice")
        assert await client.resolve(image, keychain(ALICE)) == digest
        assert realm.requests[0].authorization == ALICE.basic
    assert not any("Basic" in (value or "") for value in authorizations(server))


async def test_several_credentials_are_tried_and_the_one_that_worked_is_remembered(
    fake, server, client, image, digest
):
    async with serve(TokenServer(BOB)) as realm:
        protect(fake, f"http://{realm.address}/token", "bob")
        assert await client.resolve(image, keychain(ALICE, BOB)) == digest
        first = len(realm.requests)
        assert await client.resolve(image, keychain(ALICE, BOB)) == digest
        assert len(realm.requests) == first == 2


async def test_a_valid_login_without_the_right_gives_way_to_the_next(
    fake, server, client, image, digest
):
    async with serve(TokenServer(ALICE, BOB)) as realm:
        protect(fake, f"http://{realm.address}/token", "bob")
        assert await client.resolve(image, keychain(ALICE, BOB)) == digest


async def test_refused_pull_secrets_are_named_and_nothing_is_fetched_without_them(
    fake, server, client, image, digest
):
    async with serve(TokenServer()) as realm:
        protect(fake, f"http://{realm.address}/token", "nobody")
        both = Keychain(keychain(ALICE, BOB).sources, ("secret ns/gone does not exist",))
        with pytest.raises(AuthError) as raised:
            await client.resolve(image, both)
        assert {request.authorization for request in realm.requests} == {ALICE.basic, BOB.basic}
    message = str(raised.value)
    assert "tried secret ns/alice, secret ns/bob (secret ns/gone does not exist)" in message
    assert "token server 127.0.0.1 answered HTTP 401" in message
    assert "pw-alice" not in message
    assert raised.value.retryable


async def test_a_refused_login_of_the_process_gives_way_to_no_login(
    fake, server, client, image, digest
):
    stored = dataclasses.replace(ALICE, explicit=False)
    async with serve(TokenServer()) as realm:
        protect(fake, f"http://{realm.address}/token", "nobody")
        assert await client.resolve(image, keychain(stored)) == digest


async def test_a_password_is_sent_where_the_registry_asks_for_one(
    fake, server, client, image, digest
):
    fake.on("*", "", lambda r, reply: reply if r.authorization == BOB.basic else basic())
    assert await client.resolve(image, keychain(ALICE, BOB)) == digest
    assert authorizations(server) == [None, ALICE.basic, BOB.basic]
    assert await client.resolve(image, keychain(ALICE, BOB)) == digest
    assert authorizations(server)[3:] == [BOB.basic]


async def test_public_images_need_no_credentials(fake, server, client, image, digest):
    assert await client.resolve(image, keychain(ALICE)) == digest
    assert authorizations(server) == [None]


async def test_a_password_without_credentials_is_an_error(fake, server, client, image, digest):
    fake.on("*", "", basic())
    for _ in range(2):
        with pytest.raises(AuthError, match="no credentials matched"):
            await client.resolve(image, ANONYMOUS)


async def test_a_registry_that_forbids_instead_of_asking_gets_the_password(
    fake, server, client, image, digest
):
    denied = error(403, "DENIED", "no")
    fake.on("*", "", lambda r, reply: reply if r.authorization == ALICE.basic else denied)
    assert await client.resolve(image, keychain(ALICE)) == digest
    with pytest.raises(AuthError, match="DENIED"):
        await client.resolve(image, ANONYMOUS)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ((), "without saying which"),
        ((("WWW-Authenticate", "Negotiate"),), "unsupported authentication scheme: negotiate"),
        ((("WWW-Authenticate", "x" * 20_000),), "longer than 16384 bytes"),
        (
            tuple(("WWW-Authenticate", 'Basic realm="x"') for _ in range(50)),
            "more than 8 challenges",
        ),
    ],
)
async def test_t25_a_challenge_without_answer(fake, server, client, image, headers, message):
    fake.on("*", "", Reply(401, headers))
    with pytest.raises(AuthError, match=message if headers else "HTTP 401"):
        await client.resolve(image, ANONYMOUS)
    assert len(server.requests) == 1


IDENTITY = Credential(identity_token="identity-1", origin="secret ns/id")


async def test_an_identity_token_is_posted(fake, server, client, image, digest):
    async def exchange(request):
        form = parse_qs(request.body.decode())
        assert form["refresh_token"] == ["identity-1"]
        assert form["grant_type"] == ["refresh_token"]
        assert form["scope"] == ["repository:acme/demo:pull"]
        return Reply(body=b'{"access_token":"carol|pull","expires_in":60}')

    async with serve(exchange) as realm:
        protect(fake, f"http://{realm.address}/token", "carol")
        assert await client.resolve(image, keychain(IDENTITY)) == digest
        assert [request.method for request in realm.requests] == ["POST"]


@pytest.mark.parametrize("status", [400, 401, 404, 405])
async def test_a_token_server_that_knows_no_post_is_asked_by_get(
    fake, server, client, image, digest, status
):
    async def exchange(request):
        if request.method == "POST":
            return Reply(status)
        user, _, password = base64.b64decode(request.authorization[6:]).decode().partition(":")
        assert (user, password) == ("<token>", "identity-1")
        return Reply(body=b'{"token":"carol|pull"}')

    async with serve(exchange) as realm:
        protect(fake, f"http://{realm.address}/token", "carol")
        assert await client.resolve(image, keychain(IDENTITY)) == digest


async def test_an_identity_token_is_never_carried_along_a_redirect(
    fake, server, client, image, digest
):
    async with serve(TokenServer()) as elsewhere:

        async def away(_request):
            return Reply(307, (("Location", f"http://{elsewhere.address}/token"),))

        async with serve(away) as realm:
            protect(fake, f"http://{realm.address}/token", "carol")
            with pytest.raises(AuthError):
                await client.resolve(image, keychain(IDENTITY))
        assert {(r.method, r.body, r.authorization) for r in elsewhere.requests} == {
            ("GET", b"", None)
        }


async def test_a_password_is_not_carried_along_a_redirect_of_the_token_server(
    fake, server, client, image, digest
):
    async with serve(TokenServer(anonymous=True)) as elsewhere:

        async def away(_request):
            return Reply(302, (("Location", f"http://{elsewhere.address}/token"),))

        async with serve(away) as realm:
            protect(fake, f"http://{realm.address}/token", "nobody")
            with pytest.raises(AuthError):
                await client.resolve(image, keychain(ALICE))
        assert authorizations(elsewhere) == [None] * len(elsewhere.requests)


async def test_a_registry_token_is_sent_as_it_is(fake, server, client, image, digest):
    fixed = Credential(registry_token="carol|pull", origin="secret ns/fixed")
    async with serve(TokenServer()) as realm:
        protect(fake, f"http://{realm.address}/token", "carol")
        assert await client.resolve(image, keychain(fixed)) == digest
        assert realm.requests == []


@pytest.mark.parametrize(
    ("body", "token", "life"),
    [
        (b'{"token":"abc","expires_in":300}', "abc", 290),
        (b'{"access_token":"new","token":"old","expires_in":300}', "new", 290),
        (b'{"token":"abc"}', "abc", 50),
        (b'{"token":"abc","expires_in":-1}', "abc", 50),
        (b'{"token":"abc","expires_in":1000000000}', "abc", 86390),
        (b'{"token":"abc","expires_in":"60"}', "abc", 50),
        (b'{"token":"abc","expires_in":true}', "abc", 50),
    ],
)
def test_tokens_are_read_and_their_life_is_bounded(body, token, life):
    assert read_token(body, host="h") == (token, life)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"<html>",
        b'{"token":""}',
        b'{"token":5}',
        b'{"token":"a b"}',
        b'{"token":"a\\r\\nX: y"}',
        b'{"token":"' + b"x" * 40_000 + b'"}',
        b'{"token":"a","token":"b"}',
    ],
)
def test_t27_what_cannot_stand_in_a_header_is_no_token(body):
    with pytest.raises(AuthError, match="token server h gave no usable token"):
        read_token(body, host="h")


async def test_t27_a_token_answer_is_bounded(fake, server, client, image, digest):
    async def huge(_request):
        return Reply(body=b"x" * 1_000_000)

    async with serve(huge) as realm:
        protect(fake, f"http://{realm.address}/token", "nobody")
        with pytest.raises(Exception, match="token server is larger than 131072 bytes"):
            await client.resolve(image, ANONYMOUS)


async def test_a_token_server_that_is_down_is_tried_again(
    fake, server, client, image, digest, pauses
):
    tokens, calls = TokenServer(), 0

    async def flaky(request):
        nonlocal calls
        calls += 1
        return error(503, "UNAVAILABLE", "busy") if calls <= 2 else await tokens(request)

    async with serve(flaky) as realm:
        protect(fake, f"http://{realm.address}/token", "nobody")
        assert await client.resolve(image, ANONYMOUS) == digest
    assert len(pauses.taken) == 2


async def test_a_dead_token_server_is_given_up(fake, server, client, image, digest, pauses):
    protect(fake, "http://127.0.0.1:1/token", "nobody")
    with pytest.raises(RegistryUnavailable, match="after 4 attempts"):
        await client.resolve(image, ANONYMOUS)


async def test_refusals_are_remembered_for_a_moment(fake, server, client, image, digest, pauses):
    async with serve(TokenServer(anonymous=False)) as realm:
        protect(fake, f"http://{realm.address}/token", "nobody")
        for _ in range(3):
            with pytest.raises(AuthError):
                await client.resolve(image, ANONYMOUS)
        assert len(realm.requests) == 1
        pauses.now += 6
        with pytest.raises(AuthError):
            await client.resolve(image, ANONYMOUS)
        assert len(realm.requests) == 2


@pytest.mark.parametrize(
    "realm",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1@169.254.169.254/",
        "file:///etc/passwd",
        "http://user:pw@127.0.0.1/token",
    ],
)
async def test_t29_token_servers_at_forbidden_places_are_not_connected_to(
    fake, server, client, image, realm
):
    fake.on("*", "", Reply(401, (("WWW-Authenticate", f'Bearer realm="{realm}"'),)))
    with pytest.raises((PolicyViolation, AuthError)):
        await client.resolve(image, keychain(ALICE))
    assert authorizations(server) == [None] * len(server.requests)


@pytest.mark.parametrize("policy", ["warn", "strict"])
async def test_t28_credentials_for_a_foreign_token_server_follow_the_policy(tmp_path, policy, fake):
    authority = Authority(tmp_path)
    fake.add_image("acme/demo", b"layer")
    protect(fake, "https://evil.example/token", "alice")
    async with (
        serve(fake, tls=authority.server("reg.example")) as registry,
        serve(TokenServer(ALICE), tls=authority.server("evil.example")) as evil,
    ):
        addresses = {"93.184.216.34": registry.address, "93.184.216.35": evil.address}
        names = {"reg.example": ["93.184.216.34"], "evil.example": ["93.184.216.35"]}
        table = Network(names, addresses)
        image = parse_reference("reg.example/acme/demo:v1")
        async with connected(
            policy=policy, resolve=table.resolve, dialler=table, ca_bundle=authority.bundle
        ) as client:
            if policy == "warn":
                assert await client.resolve(image, keychain(ALICE))
                assert authorizations(evil) == [ALICE.basic]
                return
            with pytest.raises(AuthError, match=r"refusing to send credentials for reg\.example"):
                await client.resolve(image, keychain(ALICE))
            assert evil.connections == 0


async def test_t32_a_redirected_answer_never_sees_the_registrys_credentials(
    fake, server, client, image, digest
):
    blobs = FakeRegistry()
    blobs.on("*", "", basic())
    fake.on("*", "", lambda r, reply: reply if r.authorization == ALICE.basic else basic())
    async with serve(blobs, host="127.0.0.2") as elsewhere:
        away = Reply(307, (("Location", f"http://{elsewhere.address}/x?X-Sig=secret-query"),))
        fake.on("*", "manifests", lambda r, reply: away if r.authorization else basic())
        with pytest.raises(AuthError, match=r"127\.0\.0\.2 answered HTTP 401") as raised:
            await client.resolve(image, keychain(ALICE))
        assert authorizations(elsewhere) == [None] * len(elsewhere.requests)
    assert "secret-query" not in str(raised.value)


async def test_two_secrets_for_one_registry_never_share_a_token(
    fake, server, client, image, digest
):
    async with serve(TokenServer(ALICE, BOB)) as realm:
        protect(fake, f"http://{realm.address}/token", "alice")
        await client.resolve(image, keychain(ALICE))
        with pytest.raises(AuthError, match="tried secret ns/bob"):
            await client.resolve(image, keychain(BOB))
        with pytest.raises(AuthError):
            await client.resolve(image, ANONYMOUS)
