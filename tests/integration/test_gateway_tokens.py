"""Tokens of an issuer: real keys, real signatures, an issuer that is asked over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from groundplane.core.errors import InvalidArgument
from groundplane.gateway import GatewaySettings
from groundplane.gateway.jwks import KeySet
from groundplane.gateway.tokens import TokenRules, TokenVerifier
from served_gateway import House, house, tool
from token_issuer import Issuer, issuing

pytestmark = [pytest.mark.anyio, pytest.mark.req("GATE-08.2")]

PUBLIC = "https://gateway.example.com"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing(f"{PUBLIC}/mcp") as one:
        yield one


@pytest.fixture
async def verifier(issuer: Issuer) -> AsyncIterator[TokenVerifier]:
    rules = TokenRules(issuer=issuer.url, audiences=(PUBLIC, f"{PUBLIC}/mcp"), scopes={"ops": ("operate",)})
    one = TokenVerifier(rules, KeySet(issuer.url, again_s=0.0))
    yield one
    await one.aclose()


async def test_a_token_for_us_tells_its_holder_and_our_scopes(issuer: Issuer, verifier: TokenVerifier) -> None:
    caller = await verifier.verify(issuer.token(scope="tools:echo ops openid"))
    assert caller is not None
    assert (caller.principal, caller.name, caller.kind) == ("oauth:alice", "app", "token")
    assert caller.scopes == ("operate", "tools:echo")


async def test_a_token_that_is_not_for_us_or_not_the_issuers_is_refused(
    issuer: Issuer, verifier: TokenVerifier
) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    good = issuer.token()
    head, _, signature = good.split(".")
    swapped = issuer.token(sub="mallory").split(".")[1]
    refused = {
        "other audience": issuer.token(aud="https://other.example.com"),
        "no audience": issuer.token(aud=None),
        "expired": issuer.token(exp=int(time.time()) - 120),
        "no expiry": issuer.token(exp=None),
        "not yet": issuer.token(nbf=int(time.time()) + 600),
        "other issuer": issuer.token(iss="https://other.example.com"),
        "other key": issuer.token(key=other),
        "unknown key id": issuer.token(headers={"kid": "other"}),
        "tampered": f"{head}.{swapped}.{signature}",
        "shared secret": issuer.token(key="x" * 32, algorithm="HS256"),
        "unsigned": jwt.encode({"iss": issuer.url, "aud": PUBLIC, "sub": "a", "exp": 9e9}, None, "none"),
        "critical header": issuer.token(headers={"crit": ["x"], "x": 1}),
        "no subject": issuer.token(sub=None, client_id=None),
        "nonsense": "a.b.c",
    }
    assert await verifier.verify(good) is not None
    for why, text in refused.items():
        assert await verifier.verify(text) is None, why


async def test_a_key_that_was_rotated_is_found_and_one_that_was_withdrawn_counts_no_more(
    issuer: Issuer, verifier: TokenVerifier
) -> None:
    assert await verifier.verify(issuer.token()) is not None
    withdrawn = issuer.token(sub="late")
    issuer.rotate("second")
    assert await verifier.verify(issuer.token()) is not None
    assert await verifier.verify(withdrawn) is None


async def test_invented_key_ids_do_not_make_us_ask_the_issuer_at_will(issuer: Issuer) -> None:
    rules = TokenRules(issuer=issuer.url, audiences=(f"{PUBLIC}/mcp",))
    verifier = TokenVerifier(rules, KeySet(issuer.url, again_s=60.0))
    assert await verifier.verify(issuer.token()) is not None
    texts = [issuer.token(headers={"kid": f"k{n}"}) for n in range(20)]
    assert await asyncio.gather(*map(verifier.verify, texts)) == [None] * 20
    assert issuer.fetches == 1
    issuer.away = True
    assert await verifier.verify(issuer.token(sub="bob")) is not None
    await verifier.aclose()


async def test_metadata_that_is_about_another_issuer_is_not_believed(issuer: Issuer) -> None:
    keys = KeySet(issuer.url + "/")
    verifier = TokenVerifier(TokenRules(issuer=issuer.url, audiences=(PUBLIC,)), keys)
    from groundplane.core.errors import Unavailable

    with pytest.raises(Unavailable):
        await verifier.verify(issuer.token())
    await verifier.aclose()


@pytest.fixture
async def one(tmp_path: Path, issuer: Issuer) -> AsyncIterator[House]:
    settings = {"auth": "keys+oauth", "issuer": issuer.url, "public_url": PUBLIC, "scope_map": ("agents=tools:*",)}
    async with house(tmp_path, tool("echo"), tool("other"), **settings) as opened:
        yield opened


async def test_the_gateway_takes_tokens_names_its_issuer_and_challenges(one: House, issuer: Issuer) -> None:
    async with one.http() as http:
        found = (await http.get("/.well-known/oauth-protected-resource/mcp")).json()
        assert (found["resource"], found["authorization_servers"]) == (f"{PUBLIC}/mcp", [issuer.url])
        assert (await http.get("/.well-known/oauth-protected-resource")).json()["resource"] == PUBLIC
        stranger = await http.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
        assert stranger.status_code == 401
        challenge = stranger.headers["www-authenticate"]
        assert f'resource_metadata="{PUBLIC}/.well-known/oauth-protected-resource/mcp"' in challenge
        assert 'scope="agents"' in challenge
        assert "error=" not in challenge
        bad = await http.get("/v1/jobs", headers={"Authorization": "Bearer a.b.c"})
        assert (bad.status_code, 'error="invalid_token"' in bad.headers["www-authenticate"]) == (401, True)
        mine = {"Authorization": f"Bearer {issuer.token()}"}
        made = await http.post("/v1/jobs", json={"tool": "echo", "arguments": {}}, headers=mine)
        assert made.status_code == 202
        assert (await one.jobs.get(made.json()["job_id"])).owner == "oauth:alice"
        denied = await http.post("/v1/jobs", json={"tool": "other", "arguments": {}}, headers=mine)
        assert denied.status_code == 403
        assert 'error="insufficient_scope"' in denied.headers["www-authenticate"]
        theirs = {"Authorization": f"Bearer {issuer.token(sub='bob', scope='agents')}"}
        path = f"/v1/jobs/{made.json()['job_id']}"
        assert (await http.get(path, headers=theirs)).status_code == 404
        assert (await http.get(path, headers=mine)).status_code == 200


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"auth": "oauth", "public_url": PUBLIC}, "issuer"),
        ({"auth": "oauth", "issuer": "https://issuer.example.com"}, "public_url"),
        ({"auth": "oauth", "issuer": "http://issuer.example.com", "public_url": PUBLIC}, "issuer"),
        ({"auth": "keys", "scope_map": ("agents=reed",)}, "scope_map"),
    ],
)
def test_settings_that_would_not_protect_are_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}"):
        GatewaySettings(**given)


@pytest.mark.req("GATE-08.3")
def test_with_authentication_the_gateway_may_be_bound_beyond_the_loopback() -> None:
    assert GatewaySettings(host="0.0.0.0", auth="keys").host == "0.0.0.0"
