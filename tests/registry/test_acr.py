import base64
import json
from urllib.parse import parse_qs, urlsplit

import pytest

from controller.registry.acr import USER, AcrIssuer, exchange_of, life_of_token
from controller.registry.credentials import IdentityUnavailable, Keychain
from controller.registry.identities import CloudIdentity, IdentityClient
from controller.registry.reference import parse_reference
from tests.fakes.registry import bearer, error, serve
from tests.registry.test_identities import form_of, reply

HOST = "acme.azurecr.io"
NOW = 1_700_000_000


def jwt(claims: object) -> str:
    content = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{content}.c2ln"


REFRESH = jwt({"iat": NOW, "exp": NOW + 10800})


async def azure(request):
    """Azure's token service, the machine's metadata and a registry's exchange in one server."""
    if request.target.startswith("/exchange/"):
        return reply({"refresh_token": REFRESH})
    return reply({"access_token": "azure-token", "expires_in": "3599"})


def issuer(server, environment):
    url = f"http://{server.address}"
    environment = {"AZURE_POD_IDENTITY_AUTHORITY_HOST": url, **environment}
    return AcrIssuer(IdentityClient(), environment, exchange=lambda host: f"{url}/exchange/{host}")


def workload(tmp_path, server):
    (tmp_path / "token").write_text("federated")
    return {
        "AZURE_CLIENT_ID": "client",
        "AZURE_TENANT_ID": "ten/ant",
        "AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "token"),
        "AZURE_AUTHORITY_HOST": f"http://{server.address}/",
    }


@pytest.mark.parametrize(
    ("host", "matching"),
    [
        ("acme.azurecr.io", True),
        ("acme.azurecr.cn", True),
        ("acme.azurecr.us", True),
        ("acme.westeurope.azurecr.io", True),
        ("azurecr.io", False),
        ("acme.azurecr.io.evil.io", False),
        ("acmeazurecr.io", False),
        ("acme.azurecr.io:5000", False),
        ("acme.azurecr.io:443", True),
    ],
)
async def test_only_azures_hosts_get_a_token(host, matching):
    scope = AcrIssuer(IdentityClient(), {}).scope_of(parse_reference(f"{host}/a/b:v1"))
    assert scope == (host.removesuffix(":443") if matching else None)
    assert exchange_of("acme.azurecr.io") == "https://acme.azurecr.io/oauth2/exchange"


async def test_a_workload_trades_its_token_twice(tmp_path):
    async with serve(azure) as server:
        issued = await issuer(server, workload(tmp_path, server)).issue(HOST)
    assert (issued.credential.username, issued.credential.identity_token) == (USER, REFRESH)
    assert (issued.credential.explicit, issued.seconds) == (False, 10800)
    asked, exchanged = server.requests
    assert asked.target == "/ten%2Fant/oauth2/v2.0/token"
    form = form_of(asked)
    assert (form["client_id"], form["client_assertion"]) == ("client", "federated")
    assert form["scope"] == "https://containerregistry.azure.net/.default"
    assert exchanged.target == f"/exchange/{HOST}"
    assert form_of(exchanged) == {
        "grant_type": "access_token",
        "service": HOST,
        "tenant": "ten/ant",
        "access_token": "azure-token",
    }


async def test_a_machine_asks_its_metadata_server(tmp_path):
    async with serve(azure) as server:
        await issuer(server, {"AZURE_CLIENT_ID": "client"}).issue("acme.azurecr.us")
    asked, exchanged = server.requests
    assert asked.headers["metadata"] == "true"
    assert parse_qs(urlsplit(asked.target).query) == {
        "api-version": ["2018-02-01"],
        "resource": ["https://management.usgovcloudapi.net"],
        "client_id": ["client"],
    }
    assert "tenant" not in form_of(exchanged)


async def test_a_workload_without_a_tenant_says_so(tmp_path):
    async with serve(azure) as server:
        environment = workload(tmp_path, server)
        del environment["AZURE_TENANT_ID"]
        with pytest.raises(IdentityUnavailable, match="AZURE_TENANT_ID is not set"):
            await issuer(server, environment).issue(HOST)
    assert server.requests == []


async def test_a_registry_that_refuses_the_exchange_is_named_without_the_token(tmp_path):
    async def refusing(request):
        if request.target.startswith("/exchange/"):
            return error(401, "UNAUTHORIZED", "not azure-token")
        return await azure(request)

    async with serve(refusing) as server:
        with pytest.raises(IdentityUnavailable, match="answered HTTP 401") as raised:
            await issuer(server, workload(tmp_path, server)).issue(HOST)
    assert "azure-token" not in str(raised.value)


@pytest.mark.parametrize(
    ("token", "seconds"),
    [
        (REFRESH, 10800),
        ("opaque", 3600),
        ("a.b.c", 3600),
        ("a.###.c", 3600),
        (jwt([1]), 3600),
        (jwt({"iat": 5}), 3600),
        (jwt({"iat": 5, "exp": 1}), 3600),
        (jwt({"iat": 0, "exp": 10**30}), 3600),
        (jwt({"iat": "0", "exp": 5}), 3600),
    ],
)
def test_the_life_of_a_token_is_read_from_it(token, seconds):
    assert life_of_token(token) == seconds


async def test_the_token_is_traded_at_the_registry_and_renewed_before_it_ends(
    fake, server, client, image, tmp_path, pauses
):
    digest = fake.add_image("acme/demo", b"layer")

    async def tokens(request):
        if request.method == "POST" and form_of(request)["refresh_token"] == REFRESH:
            return reply({"access_token": "granted", "expires_in": 300})
        return error(401, "UNAUTHORIZED", "who are you")

    class Here(AcrIssuer):
        def scope_of(self, reference):
            return HOST

    async with serve(azure) as cloud, serve(tokens) as realm:
        challenge = bearer(f"http://{realm.address}/token")
        fake.on(
            "*", "", lambda r, given: given if "granted" in (r.authorization or "") else challenge
        )
        url = f"http://{cloud.address}/exchange/"
        there = Here(
            IdentityClient(), workload(tmp_path, cloud), exchange=lambda host: f"{url}{host}"
        )
        keys = Keychain((CloudIdentity(there, clock=pauses.clock),))
        assert await client.resolve(image, keys) == digest
        assert await client.resolve(image, keys) == digest
        assert (len(cloud.requests), len(realm.requests)) == (2, 1)
        pauses.now += 0.8 * 10800
        assert await client.resolve(image, keys) == digest
        assert len(cloud.requests) == 4
