import base64
import json
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from controller.registry.aws import AccessKey, sign
from controller.registry.credentials import IdentityUnavailable
from controller.registry.ecr import EcrIssuer, read_password, service_of
from controller.registry.identities import CloudIdentity, IdentityClient
from controller.registry.reference import parse_reference
from tests.fakes.registry import Reply, serve
from tests.registry.test_identities import form_of, reply

HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
NOW = 1_700_000_000
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrSECRET"}


def ref(host=HOST):
    return parse_reference(f"{host}/acme/demo:v1")


def login(password="pw", ends=NOW + 43200):
    token = base64.b64encode(f"AWS:{password}".encode()).decode()
    return {"authorizationData": [{"authorizationToken": token, "expiresAt": ends}]}


class Aws:
    """ECR, the token service, the container's agent and the machine's metadata in one server."""

    def __init__(self) -> None:
        self.ecr = reply(login())
        self.role = "demo-role"
        self.answers: dict[str, Reply] = {}

    async def __call__(self, request):
        path = request.target.partition("?")[0]
        if path in self.answers:
            return self.answers[path]
        if request.headers.get("x-amz-target"):
            return self.ecr
        if path == "/latest/api/token":
            return Reply(200, body=b"imds-token")
        if path == "/latest/meta-data/iam/security-credentials/":
            return Reply(200, body=self.role.encode())
        key = {"AccessKeyId": "ASIATEMP", "SecretAccessKey": "tempSECRET", "Token": "sessionSECRET"}
        if request.method == "POST":
            key["SessionToken"] = key.pop("Token")
            inner = "".join(f"<{name}>{value}</{name}>" for name, value in key.items())
            return Reply(200, body=f"<R><Credentials>{inner}</Credentials></R>".encode())
        return reply(key)


def issuer(server, environment, now=NOW):
    url = f"http://{server.address}"
    environment = {
        "AWS_ENDPOINT_URL_ECR": url,
        "AWS_ENDPOINT_URL_ECR_PUBLIC": url,
        "AWS_ENDPOINT_URL_STS": url,
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": url,
        **environment,
    }
    return EcrIssuer(IdentityClient(), environment, wall=lambda: now)


@pytest.mark.parametrize(
    ("method", "signature"),
    [
        ("GET", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    ],
)
def test_requests_are_signed_as_in_the_published_vectors(method, signature):
    key = AccessKey("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
    headers = sign(
        "https://example.amazonaws.com/",
        {},
        b"",
        key=key,
        region="us-east-1",
        service="service",
        at=datetime(2015, 8, 30, 12, 36, tzinfo=UTC),
        method=method,
    )
    assert headers["Authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        f"SignedHeaders=host;x-amz-date, Signature={signature}"
    )


@pytest.mark.parametrize(
    "key", [AccessKey("a b", "x"), AccessKey("A", "ü"), AccessKey("A", "x", "a\nb")]
)
def test_a_key_that_cannot_be_one_signs_nothing(key):
    with pytest.raises(IdentityUnavailable, match="characters that no access key has"):
        sign("https://a/", {}, b"", key=key, region="r", service="s", at=datetime.now(UTC))


def test_keys_never_show():
    assert repr(AccessKey("AKID", "secret", "session")) == "AccessKey()"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        (HOST, "https://api.ecr.eu-west-1.amazonaws.com/"),
        (
            "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
            "https://ecr-fips.us-gov-west-1.amazonaws.com/",
        ),
        (
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
            "https://api.ecr.cn-north-1.amazonaws.com.cn/",
        ),
        ("123456789012.dkr-ecr.eu-west-1.on.aws", "https://api.ecr.eu-west-1.amazonaws.com/"),
        ("public.ecr.aws", "https://api.ecr-public.us-east-1.amazonaws.com/"),
    ],
)
def test_each_registry_has_the_service_of_its_region(host, url):
    found = service_of(host)
    assert found is not None
    assert found.url == url


@pytest.mark.parametrize(
    "host",
    [
        "12345678901.dkr.ecr.eu-west-1.amazonaws.com",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.io",
        "evil.123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        "123456789012.dkr.ecr.eu.west.amazonaws.com",
        "123456789012xdkr.ecr.eu-west-1.amazonaws.com",
        "ecr.aws",
        "evil-public.ecr.aws",
        "٣٣٣٣٣٣٣٣٣٣٣٣.dkr.ecr.eu-west-1.amazonaws.com",
    ],
)
def test_no_other_host_gets_a_password(host):
    assert service_of(host) is None


async def test_the_key_of_the_environment_is_used():
    async with serve(Aws()) as server:
        issued = await issuer(server, KEYS).issue(HOST)
    assert (issued.credential.username, issued.credential.password) == ("AWS", "pw")
    assert (issued.credential.explicit, issued.seconds) == (False, 43200)
    [asked] = server.requests
    assert asked.body == b"{}"
    assert asked.headers["x-amz-target"].endswith(".GetAuthorizationToken")
    authorization = asked.authorization or ""
    assert "AKIDEXAMPLE/20231114/eu-west-1/ecr/aws4_request" in authorization
    assert "content-type;host;x-amz-date;x-amz-target" in authorization
    assert "SECRET" not in str(asked.headers)


async def test_a_public_registry_has_a_service_of_its_own():
    aws = Aws()
    aws.ecr = reply({"authorizationData": login()["authorizationData"][0]})
    async with serve(aws) as server:
        issued = await issuer(server, KEYS).issue("public.ecr.aws")
    assert issued.credential.password == "pw"
    authorization = server.requests[0].authorization or ""
    assert "/us-east-1/ecr-public/aws4_request" in authorization


async def test_a_web_identity_is_traded_for_a_key(tmp_path):
    (tmp_path / "token").write_text("web-token")
    environment = {
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/demo",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
    }
    async with serve(Aws()) as server:
        await issuer(server, environment).issue(HOST)
    assumed, asked = server.requests
    form = form_of(assumed)
    assert form["Action"] == "AssumeRoleWithWebIdentity"
    assert (form["RoleArn"], form["WebIdentityToken"]) == (environment["AWS_ROLE_ARN"], "web-token")
    assert assumed.authorization is None
    assert asked.headers["x-amz-security-token"] == "sessionSECRET"
    assert "Credential=ASIATEMP/" in (asked.authorization or "")


async def test_a_container_asks_its_agent(tmp_path):
    (tmp_path / "token").write_text("agent-token")
    async with serve(Aws()) as server:
        environment = {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{server.address}/v1/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "token"),
        }
        await issuer(server, environment).issue(HOST)
    agent, asked = server.requests
    assert (agent.target, agent.authorization) == ("/v1/credentials", "agent-token")
    assert "Credential=ASIATEMP/" in (asked.authorization or "")


async def test_an_agent_elsewhere_is_not_asked():
    async with serve(Aws()) as server:
        environment = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://10.1.2.3/"}
        with pytest.raises(IdentityUnavailable, match="is no agent's address"):
            await issuer(server, environment).issue(HOST)
    assert server.requests == []


async def test_a_machine_asks_its_metadata_server():
    async with serve(Aws()) as server:
        await issuer(server, {}).issue(HOST)
    assert server.seen[:3] == [
        "PUT /latest/api/token",
        "GET /latest/meta-data/iam/security-credentials/",
        "GET /latest/meta-data/iam/security-credentials/demo-role",
    ]
    assert [r.headers.get("x-aws-ec2-metadata-token") for r in server.requests[1:3]] == [
        "imds-token"
    ] * 2


async def test_a_role_that_is_no_name_is_not_asked_for():
    aws = Aws()
    aws.role = "../../user-data"
    async with serve(aws) as server:
        with pytest.raises(IdentityUnavailable, match="names no role"):
            await issuer(server, {}).issue(HOST)
        assert len(server.requests) == 2
        with pytest.raises(IdentityUnavailable, match="no access key is set up"):
            await issuer(server, {"AWS_EC2_METADATA_DISABLED": "true"}).issue(HOST)
        assert len(server.requests) == 2


async def test_a_refused_role_is_named_by_its_code(tmp_path):
    (tmp_path / "token").write_text("web-token")
    aws = Aws()
    body = b"<E><Code>AccessDenied</Code><Message>secret words</Message></E>"
    aws.answers["/"] = Reply(403, body=body)
    environment = {"AWS_ROLE_ARN": "arn", "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token")}
    async with serve(aws) as server:
        with pytest.raises(IdentityUnavailable, match=r"HTTP 403 \(AccessDenied\)") as raised:
            await issuer(server, environment).issue(HOST)
    assert "secret" not in str(raised.value)


async def test_a_wrong_clock_is_put_right_by_the_service():
    there = datetime.fromtimestamp(NOW + 3600, UTC)
    date = ("Date", format_datetime(there, usegmt=True))

    async def skewed(request):
        if request.headers["x-amz-date"] != there.strftime("%Y%m%dT%H%M%SZ"):
            return reply({"__type": "InvalidSignatureException"}, 403, date)
        return reply(login(ends=NOW + 3600 + 43200), 200, date)

    async with serve(skewed) as server:
        issued = await issuer(server, KEYS).issue(HOST)
        assert (issued.seconds, len(server.requests)) == (43200, 2)


async def test_a_refusal_at_the_right_time_is_final():
    aws = Aws()
    date = ("Date", format_datetime(datetime.fromtimestamp(NOW, UTC), usegmt=True))
    aws.ecr = reply({"__type": "AccessDeniedException"}, 400, date)
    async with serve(aws) as server:
        with pytest.raises(IdentityUnavailable, match=r"HTTP 400 \(AccessDeniedException\)"):
            await issuer(server, KEYS).issue(HOST)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"authorizationData": []},
        {"authorizationData": "x"},
        {"authorizationData": [{"authorizationToken": 5}]},
        {"authorizationData": [{"authorizationToken": "***"}]},
        {"authorizationData": [None]},
    ],
)
def test_an_answer_without_a_password_is_an_error(document):
    with pytest.raises(IdentityUnavailable, match=r"api\.ecr gave no"):
        read_password(document, "api.ecr", now=NOW)


@pytest.mark.parametrize("ends", [None, "soon", 1e300, -1, json.loads("1e999"), float("nan")])
def test_an_end_that_makes_no_sense_is_now(ends):
    assert read_password(login(ends=ends), "api.ecr", now=NOW).seconds <= 0


async def test_a_password_is_asked_for_once_in_its_life(pauses):
    async with serve(Aws()) as server:
        identity = CloudIdentity(issuer(server, KEYS), clock=pauses.clock)
        for _ in range(3):
            [found] = await identity.credentials_for(ref())
        assert (found.password, len(server.requests)) == ("pw", 1)
        pauses.now += 0.8 * 43200
        await identity.credentials_for(ref())
        assert len(server.requests) == 2
        assert await identity.credentials_for(ref("reg.io")) == []
