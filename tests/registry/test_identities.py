"""What all clouds share: how long a credential is kept, who asks for it, and what failures cost."""

import asyncio
import json
from urllib.parse import parse_qs

import pytest

from controller.registry.ambient import GithubWorkflow, ambient_keychain
from controller.registry.challenge import Challenge
from controller.registry.credentials import Credential, IdentityUnavailable, Keychain
from controller.registry.failures import AuthError
from controller.registry.identities import (
    ANSWER_MAX,
    CloudIdentity,
    IdentityClient,
    Issued,
    life_of,
    read_file,
)
from controller.registry.proxies import Proxies
from controller.registry.reference import parse_reference
from controller.registry.tokens import Access, Denied, TokenBook
from controller.registry.transport import Transport
from tests.fakes.registry import Reply, bearer, error, serve
from tests.registry.conftest import QUICK, connected, keychain


def ref(text="reg.cloud/acme/demo:v1"):
    return parse_reference(text, strict=False)


def reply(document: object, status: int = 200, *headers: tuple[str, str]) -> Reply:
    return Reply(
        status, (("Content-Type", "application/json"), *headers), json.dumps(document).encode()
    )


def form_of(request) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(request.body.decode()).items()}


class Issuer:
    """A cloud whose answers a test decides."""

    name = "Test identity"

    def __init__(self, life: float = 1000.0) -> None:
        self.life = life
        self.asked: list[str] = []
        self.failure = ""
        self.gate: asyncio.Event | None = None

    def scope_of(self, reference):
        return reference.host if reference.host.endswith(".cloud") else None

    async def issue(self, scope):
        self.asked.append(scope)
        number = len(self.asked)
        if self.gate is not None:
            await self.gate.wait()
        if self.failure:
            raise IdentityUnavailable(self.failure)
        return Issued(Credential("u", f"pw{number}", origin=self.name, explicit=False), self.life)


async def passwords(identity, text="reg.cloud/acme/demo:v1"):
    return [found.password for found in await identity.credentials_for(ref(text))]


async def test_a_credential_is_kept_for_four_fifths_of_its_life(pauses):
    issuer = Issuer(life=1000)
    identity = CloudIdentity(issuer, clock=pauses.clock)
    assert await passwords(identity) == ["pw1"]
    pauses.now += 799
    assert await passwords(identity) == ["pw1"]
    pauses.now += 1
    assert await passwords(identity) == ["pw2"]
    assert issuer.asked == ["reg.cloud"] * 2


async def test_other_hosts_are_not_asked_for():
    issuer = Issuer()
    assert await passwords(CloudIdentity(issuer), "reg.io/acme/demo:v1") == []
    assert issuer.asked == []


async def test_each_scope_has_its_own_credential():
    identity = CloudIdentity(Issuer())
    assert await passwords(identity, "a.cloud/x/y:v1") == ["pw1"]
    assert await passwords(identity, "b.cloud/x/y:v1") == ["pw2"]
    assert await passwords(identity, "a.cloud/x/z:v1") == ["pw1"]


async def test_however_many_wait_one_asks():
    issuer = Issuer()
    issuer.gate = asyncio.Event()
    identity = CloudIdentity(issuer)
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(passwords(identity)) for _ in range(20)]
        await asyncio.sleep(0)
        issuer.gate.set()
    assert [task.result() for task in waiting] == [["pw1"]] * 20
    assert len(issuer.asked) == 1


async def test_one_who_stops_waiting_does_not_stop_the_others():
    issuer = Issuer()
    issuer.gate = asyncio.Event()
    identity = CloudIdentity(issuer)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(passwords(identity))
        second = tasks.create_task(passwords(identity))
        for _ in range(3):
            await asyncio.sleep(0)
        first.cancel()
        issuer.gate.set()
    assert second.result() == ["pw2"]


async def test_what_still_holds_is_used_while_it_is_renewed(pauses):
    issuer = Issuer(life=1000)
    identity = CloudIdentity(issuer, clock=pauses.clock)
    await passwords(identity)
    pauses.now += 900
    issuer.gate = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        renewing = tasks.create_task(passwords(identity))
        await asyncio.sleep(0)
        assert await passwords(identity) == ["pw1"]
        issuer.gate.set()
    assert renewing.result() == ["pw2"]


async def test_a_failed_renewal_leaves_what_still_holds_and_is_tried_again(pauses):
    issuer = Issuer(life=1000)
    identity = CloudIdentity(issuer, clock=pauses.clock)
    await passwords(identity)
    issuer.failure = "the cloud is down"
    pauses.now += 800
    assert await passwords(identity) == ["pw1"]
    assert await passwords(identity) == ["pw1"]
    assert len(issuer.asked) == 2
    pauses.now += 200
    with pytest.raises(IdentityUnavailable, match="Test identity: the cloud is down"):
        await passwords(identity)
    issuer.failure = ""
    pauses.now += 60
    assert await passwords(identity) == ["pw4"]


async def test_a_failure_is_remembered_for_a_minute(pauses):
    issuer = Issuer()
    issuer.failure = "no metadata server"
    identity = CloudIdentity(issuer, clock=pauses.clock)
    for _ in range(3):
        with pytest.raises(IdentityUnavailable, match="no metadata server"):
            await passwords(identity)
    assert len(issuer.asked) == 1
    pauses.now += 60
    issuer.failure = ""
    assert await passwords(identity) == ["pw2"]


async def test_a_life_that_makes_no_sense_is_bounded(pauses):
    issuer = Issuer(life=-5)
    identity = CloudIdentity(issuer, clock=pauses.clock)
    assert await passwords(identity) == ["pw1"]
    pauses.now += 47
    assert await passwords(identity) == ["pw1"]
    pauses.now += 1
    issuer.life = 1e12
    assert await passwords(identity) == ["pw2"]
    pauses.now += 86400
    assert await passwords(identity) == ["pw3"]


@pytest.mark.parametrize(
    ("value", "life"),
    [(3599, 3599), ("3599", 3599), (None, 60), (True, 60), ("1e9", 60), (-1, 0), (10**30, 10**9)],
)
def test_lives_are_numbers_or_texts(value, life):
    assert life_of({"expires_in": value}) == life


async def test_a_token_service_is_asked_with_a_form_and_its_answer_is_read():
    async with serve(lambda request: answer(reply({"a": 1}))) as service:
        found = await IdentityClient().post(f"http://{service.address}/token", {"grant": "a b"})
    [asked] = service.requests
    assert (asked.method, form_of(asked)) == ("POST", {"grant": "a b"})
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
    assert found.document() == {"a": 1}


async def answer(value: Reply) -> Reply:
    return value


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            reply({"error": "invalid_grant", "error_description": "secret1"}, 400),
            r"HTTP 400 \(invalid_grant\)",
        ),
        (reply({"__type": "AccessDeniedException", "message": "secret1"}, 403), r"HTTP 403 \(Acc"),
        (reply({"error": {"message": "secret1"}}, 500), "answered HTTP 500$"),
        (reply({"error": "bad words with secret1"}, 400), "answered HTTP 400$"),
        (Reply(302, (("Location", "http://127.0.0.1:1/"),)), "answered HTTP 302"),
        (Reply(200, body=b"secret1"), "gave no JSON object"),
        (Reply(200, body=b"[1]"), "gave no JSON object"),
        (Reply(200, body=b"[" * 20000), "gave no JSON object"),
        (Reply(200, body=b"x" * (ANSWER_MAX + 1)), f"more than {ANSWER_MAX} bytes"),
        (Reply(raw=b"garbage\r\n\r\n"), "cannot ask 127.0.0.1"),
        (Reply(raw=b""), "cannot ask 127.0.0.1"),
    ],
)
async def test_a_bad_answer_of_a_token_service_is_named_without_its_words(given, text):
    async with serve(lambda request: answer(given)) as service:
        with pytest.raises(IdentityUnavailable, match=text) as raised:
            (await IdentityClient().post(f"http://{service.address}/", {"a": "secret2"})).document()
    assert "secret" not in str(raised.value)
    assert len(service.requests) == 1


async def test_secrets_are_sent_over_tls_or_on_loopback_only():
    for url in ("http://10.0.0.5/token", "ftp://reg.io/", "token", "https://"):
        with pytest.raises(IdentityUnavailable, match="is not asked without TLS"):
            await IdentityClient().post(url, {"a": "b"})


async def test_metadata_servers_are_asked_directly_and_others_through_the_proxy():
    async with (
        serve(lambda request: answer(reply({}))) as service,
        serve(lambda request: answer(reply({}, 403))) as proxy,
    ):
        through = f"http://{proxy.address}"
        client = IdentityClient(proxies=Proxies(http=through, https=through))
        await client.metadata(f"http://{service.address}/", {})
        assert (len(service.requests), len(proxy.requests)) == (1, 0)
        # Loopback is never reached through a proxy; another name shows whether the rest is.
        with pytest.raises(IdentityUnavailable, match=r"metadata\.invalid"):
            await client.metadata("http://metadata.invalid/", {})
        assert proxy.requests == []
        with pytest.raises(IdentityUnavailable, match=r"cannot ask token\.invalid: ProxyError"):
            await client.post("https://token.invalid/", {"a": "b"})
        assert proxy.seen == ["CONNECT token.invalid:443"]


async def test_files_of_tokens_are_small_texts(tmp_path):
    path = tmp_path / "token"
    path.write_text("  abc\n")
    assert await read_file(str(path), "the token") == "abc"
    for content, text in (
        (b"\xff\xfe", "is no text"),
        (b" \n", "is empty"),
        (b"a" * 70000, "larger than"),
    ):
        path.write_bytes(content)
        with pytest.raises(IdentityUnavailable, match=text):
            await read_file(str(path), "the token")
    with pytest.raises(IdentityUnavailable, match=r"cannot read the token .*: No such file"):
        await read_file(str(tmp_path / "absent"), "the token")
    with pytest.raises(IdentityUnavailable, match="Is a directory"):
        await read_file(str(tmp_path), "the token")


async def test_the_first_source_with_something_is_the_only_one_that_is_used():
    issuer = Issuer()
    named = Credential("named", "x", origin="secret ns/a")
    both = Keychain.combine(keychain(named), Keychain((CloudIdentity(issuer),)))
    assert await both.credentials_for(ref()) == [named]
    assert issuer.asked == []


async def test_t93_an_absent_identity_is_a_note_and_nothing_is_shown():
    issuer = Issuer()
    issuer.failure = "metadata gave no answer in 2 s"
    identity = Keychain((CloudIdentity(issuer),), ("secret ns/b does not exist",))
    found = await identity.look_up(ref())
    assert found.credentials == ()
    assert found.notes == (
        "secret ns/b does not exist",
        "Test identity: metadata gave no answer in 2 s",
    )
    other = await identity.look_up(ref("reg.io/acme/demo:v1"))
    assert other.notes == ("secret ns/b does not exist",)


async def test_t93_the_refusal_of_a_registry_says_which_identity_was_missing(pauses):
    issuer = Issuer()
    issuer.failure = "metadata gave no answer in 2 s"
    found = await Keychain((CloudIdentity(issuer),)).look_up(ref())
    transport = Transport(user_agent="test", limits=QUICK, clock=pauses.clock)
    async with transport:
        endpoint = await transport.endpoint("reg.cloud")
        access = Access(TokenBook(transport), endpoint, ("s",), found.credentials, found.notes)
        assert await access.authorization() is None
        refusal = AuthError("HTTP 401", status=401)
        with pytest.raises(
            AuthError, match=r"no credentials matched.*Test identity: metadata gave"
        ):
            await access.advance(Denied(401, [Challenge("basic")], refusal))


async def test_t93_a_silent_metadata_server_costs_its_deadline_once_and_public_images_are_fetched(
    fake, server, image
):
    async def silent(request):
        await asyncio.sleep(3600)
        raise AssertionError

    class Silent(Issuer):
        def scope_of(self, reference):
            return reference.host

        async def issue(self, scope):
            self.asked.append(scope)
            client = IdentityClient(metadata_seconds=0.1)
            await client.metadata(f"http://{service.address}/token", {})
            raise AssertionError

    digest = fake.add_image("acme/demo", b"layer")
    async with serve(silent) as service, connected() as client:
        issuer = Silent()
        source = CloudIdentity(issuer)
        identity = Keychain((source,))
        assert await client.resolve(image, identity) == digest
        assert await client.resolve(image, identity) == digest
        with pytest.raises(IdentityUnavailable, match=r"127\.0\.0\.1 gave no answer in 0\.1 s"):
            await source.credentials_for(image)
    assert len(issuer.asked) == len(service.requests) == 1
    assert [request.authorization for request in server.requests] == [None, None]


async def test_the_workflow_token_is_for_its_own_registry_alone():
    environment = {"GITHUB_TOKEN": "ghs_1", "GITHUB_ACTOR": "octo"}
    source = GithubWorkflow(environment)
    [found] = await source.credentials_for(ref("ghcr.io/acme/demo:v1"))
    assert (found.username, found.password, found.explicit) == ("octo", "ghs_1", False)
    assert await source.credentials_for(ref("reg.io/acme/demo:v1")) == []
    assert await GithubWorkflow({}).credentials_for(ref("ghcr.io/acme/demo:v1")) == []


async def test_the_process_has_its_files_first_and_then_its_clouds(tmp_path):
    def kinds(keys):
        return [type(source).__name__ for source in keys.sources]

    clouds = ["CloudIdentity"] * 3
    assert kinds(ambient_keychain({}, tmp_path)) == ["DockerConfig", *clouds]
    assert kinds(ambient_keychain({}, tmp_path, clouds=(), github=True)) == [
        "DockerConfig",
        "GithubWorkflow",
    ]
    order = [source._issuer.name for source in ambient_keychain({}, tmp_path).sources[1:]]  # type: ignore[attr-defined]  # a test looks inside
    assert order == ["Google identity", "AWS identity", "Azure identity"]


async def test_a_refused_identity_gives_way_to_none(fake, server, client, image):
    digest = fake.add_image("acme/demo", b"layer")

    class Everywhere(Issuer):
        def scope_of(self, reference):
            return "all"

    async def tokens(request):
        if request.authorization is not None:
            return error(401, "UNAUTHORIZED", "who are you")
        return reply({"token": "anonymous"})

    async with serve(tokens) as realm:
        challenge = bearer(f"http://{realm.address}/token")
        fake.on("*", "", lambda r, given: given if r.authorization else challenge)
        assert await client.resolve(image, Keychain((CloudIdentity(Everywhere()),))) == digest
        assert [asked.authorization is None for asked in realm.requests] == [False, True]


async def test_t93_a_registry_that_refuses_says_which_identity_was_missing(
    fake, server, client, image
):
    class Everywhere(Issuer):
        def scope_of(self, reference):
            return "all"

    issuer = Everywhere()
    issuer.failure = "metadata gave no answer in 2 s"
    fake.on("*", "", error(401, "UNAUTHORIZED", "no"))
    with pytest.raises(AuthError, match=r"no credentials matched \(Test identity: metadata gave"):
        await client.resolve(image, Keychain((CloudIdentity(issuer),)))
