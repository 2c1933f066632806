import base64
import json

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from controller.registry.credentials import IdentityUnavailable
from controller.registry.gcr import GoogleIssuer, is_google_host
from controller.registry.identities import CloudIdentity, IdentityClient
from controller.registry.reference import parse_reference
from tests.fakes.registry import Reply, error, serve
from tests.registry.test_identities import form_of, reply

NOW = 1_700_000_000
KEY = rsa.generate_private_key(65537, 2048)


def pem(key) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


async def google(request):
    """Google's token services and the machine's metadata in one server."""
    if request.target.startswith("/computeMetadata/"):
        if request.headers.get("metadata-flavor") != "Google":
            return error(403, "FORBIDDEN", "no flavor")
        return reply({"access_token": "machine", "expires_in": 3599})
    if request.target.endswith(":generateAccessToken"):
        return reply({"accessToken": "acting", "expireTime": "2030-01-01T00:00:00Z"})
    return reply({"access_token": "given", "expires_in": 3599})


def issuer(tmp_path, environment=None, content=None):
    environment = dict(environment or {})
    if content is not None:
        path = tmp_path / "adc.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(path)
    return GoogleIssuer(IdentityClient(), environment, tmp_path, wall=lambda: NOW)


async def password(*arguments):
    issued = await issuer(*arguments).issue("google")
    assert (issued.credential.username, issued.credential.explicit) == ("_token", False)
    return issued.credential.password, issued.seconds


@pytest.mark.parametrize(
    ("host", "matching"),
    [
        ("gcr.io", True),
        ("eu.gcr.io", True),
        ("europe-docker.pkg.dev", True),
        ("x.google.com", True),
        ("evilgcr.io", False),
        ("pkg.dev", False),
        ("google.com", False),
        ("gcr.io.evil.io", False),
    ],
)
def test_only_googles_hosts_get_a_token(host, matching):
    assert is_google_host(host) is matching


def test_one_token_is_for_all_registries_but_no_other_port(tmp_path):
    scope = issuer(tmp_path).scope_of
    assert scope(parse_reference("gcr.io/a/b:v1")) == scope(parse_reference("eu.gcr.io:443/a/b:v1"))
    assert scope(parse_reference("gcr.io:5000/a/b:v1")) is None


async def test_a_machine_asks_its_metadata_server(tmp_path):
    async with serve(google) as server:
        environment = {"GCE_METADATA_HOST": server.address}
        assert await password(tmp_path, environment) == ("machine", 3599)
    [asked] = server.requests
    assert asked.target == "/computeMetadata/v1/instance/service-accounts/default/token"


async def test_a_service_account_proves_itself_by_its_signature(tmp_path):
    async with serve(google) as server:
        url = f"http://{server.address}/token"
        content = {
            "type": "service_account",
            "client_email": "demo@acme.iam",
            "private_key": pem(KEY),
            "private_key_id": "key1",
            "token_uri": url,
        }
        assert await password(tmp_path, None, content) == ("given", 3599)
    form = form_of(server.requests[0])
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    head, claims, signature = form["assertion"].split(".")
    decoded = [json.loads(base64.urlsafe_b64decode(part + "==")) for part in (head, claims)]
    assert decoded == [
        {"alg": "RS256", "typ": "JWT", "kid": "key1"},
        {
            "iss": "demo@acme.iam",
            "scope": "https://www.googleapis.com/auth/cloud-platform",
            "aud": url,
            "iat": NOW,
            "exp": NOW + 600,
        },
    ]
    KEY.public_key().verify(
        base64.urlsafe_b64decode(signature + "=="),
        f"{head}.{claims}".encode(),
        padding.PKCS1v15(),
        hashes.SHA256(),
    )


async def test_a_person_trades_a_refresh_token(tmp_path):
    async with serve(google) as server:
        folder = tmp_path / ".config" / "gcloud"
        folder.mkdir(parents=True)
        content = {
            "type": "authorized_user",
            "client_id": "id",
            "client_secret": "cs",
            "refresh_token": "rt",
            "token_uri": f"http://{server.address}/token",
        }
        (folder / "application_default_credentials.json").write_text(json.dumps(content))
        assert await password(tmp_path) == ("given", 3599)
    assert form_of(server.requests[0]) == {
        "grant_type": "refresh_token",
        "client_id": "id",
        "client_secret": "cs",
        "refresh_token": "rt",
    }


@pytest.mark.parametrize("form", [None, {"type": "json", "subject_token_field_name": "jwt"}])
async def test_the_token_of_another_provider_is_traded(tmp_path, form):
    text = "subject" if form is None else json.dumps({"jwt": "subject"})
    (tmp_path / "subject").write_text(text)
    async with serve(google) as server:
        content = {
            "type": "external_account",
            "audience": "//iam/pool",
            "subject_token_type": "urn:jwt",
            "token_url": f"http://{server.address}/sts",
            "credential_source": {"file": str(tmp_path / "subject"), "format": form},
        }
        assert await password(tmp_path, None, content) == ("given", 3599)
        content["service_account_impersonation_url"] = (
            f"http://{server.address}/sa:generateAccessToken"
        )
        assert await password(tmp_path, None, content) == ("acting", 300)
    traded = form_of(server.requests[0])
    assert (traded["subject_token"], traded["audience"]) == ("subject", "//iam/pool")
    assert server.requests[-1].authorization == "Bearer given"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is no JSON object"),
        ("[1]", "is no JSON object"),
        ({"type": "other"}, "of the unknown type other"),
        ({}, "of the unknown type None"),
        ({"type": "authorized_user"}, "has no client_id"),
        ({"type": "service_account", "client_email": 5}, "has no client_email"),
        (
            {"type": "service_account", "client_email": "a", "private_key": "secretword"},
            "private_key is none",
        ),
        (
            {
                "type": "service_account",
                "client_email": "a",
                "private_key": pem(ec.generate_private_key(ec.SECP256R1())),
            },
            "no RSA key",
        ),
        ({"type": "external_account"}, "only a token in a file"),
        (
            {"type": "external_account", "credential_source": {"executable": {"command": "sh"}}},
            "only a token in a file",
        ),
    ],
)
async def test_a_file_that_is_no_identity_is_named_without_its_content(tmp_path, content, text):
    with pytest.raises(IdentityUnavailable, match=text) as raised:
        await password(tmp_path, None, content)
    assert "secretword" not in str(raised.value)


async def test_secrets_of_a_file_are_not_sent_without_tls(tmp_path):
    content = dict.fromkeys(("client_id", "client_secret", "refresh_token"), "x")
    content |= {"type": "authorized_user", "token_uri": "http://token.example/"}
    with pytest.raises(IdentityUnavailable, match="not asked without TLS"):
        await password(tmp_path, None, content)


@pytest.mark.parametrize(
    "answer",
    [{"expires_in": 5}, {"access_token": ""}, {"access_token": "a\nb"}, {"access_token": 5}],
)
async def test_an_answer_without_a_token_is_an_error(tmp_path, answer):
    async def broken(request):
        return reply(answer)

    async with serve(broken) as server:
        with pytest.raises(IdentityUnavailable, match=r"127\.0\.0\.1 gave no usable access_token"):
            await password(tmp_path, {"GCE_METADATA_HOST": server.address})


async def test_a_token_is_renewed_before_it_ends(tmp_path, pauses):
    async with serve(google) as server:
        made = issuer(tmp_path, {"GCE_METADATA_HOST": server.address})
        identity = CloudIdentity(made, clock=pauses.clock)
        for host in ("gcr.io", "eu.gcr.io", "europe-docker.pkg.dev"):
            [found] = await identity.credentials_for(parse_reference(f"{host}/a/b:v1"))
            assert found.password == "machine"
        assert len(server.requests) == 1
        pauses.now += 0.8 * 3599
        await identity.credentials_for(parse_reference("gcr.io/a/b:v1"))
        assert len(server.requests) == 2


async def test_a_machine_without_an_account_says_so(tmp_path):
    async def none(request):
        return Reply(404, body=b"no account")

    async with serve(none) as server:
        with pytest.raises(IdentityUnavailable, match="answered HTTP 404"):
            await password(tmp_path, {"GCE_METADATA_HOST": server.address})
