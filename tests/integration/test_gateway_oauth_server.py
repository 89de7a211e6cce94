"""A gateway that takes the tokens of a real authorization server: oidc-provider, in its own process."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.client import Client as McpClient
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken

from groundplane.gateway import tokens
from groundplane.gateway.jwks import AGAIN_S, KeySet
from groundplane.gateway.tokens import TokenRules, TokenVerifier
from groundplane.testing.clock import VirtualClock
from groundplane.testing.servers import oidc
from groundplane.testing.servers.contract import Running
from groundplane.testing.servers.ports import Ports
from served_gateway import House, actors, echo, eventually, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.req("GATE-08.2")]

PUBLIC = "https://gateway.example.com"
CLIENTS = [
    {"client_id": "alice", "client_secret": "of-alice", "scope": "tools:echo"},
    {"client_id": "agent", "client_secret": "of-agent", "scope": "agents"},
    {"client_id": "reader", "client_secret": "of-reader", "scope": "read openid"},
]
ERAS = ("legacy", "2026-07-28")
LIFETIME_S = 300
WAIT_S = 60.0


@pytest.fixture(scope="module")
def issuer(own_server_of_module: Callable[..., Running]) -> Running:
    """One for the module; a test that stops it, or sets its clock, starts one of its own."""
    return own_server_of_module("oidc", clients=CLIENTS, lifetime_s=LIFETIME_S)


@asynccontextmanager
async def gateway(folder: Path, issuer: Running, **settings: Any) -> AsyncIterator[House]:
    """A gateway that takes tokens of that issuer."""
    given: dict[str, Any] = {"auth": "oauth", "issuer": issuer.url, "public_url": PUBLIC, "rate": "none"}
    given |= {"scope_map": ("agents=tools:*",), **settings}
    async with house(folder, tool("echo"), tool("other"), **given) as one:
        yield one


def token(issuer: Running, client: str = "alice", *, resource: str = f"{PUBLIC}/mcp", scope: str | None = None) -> str:
    """One of that client, with all the scopes that it may have."""
    (secret, allowed), *_ = [(one["client_secret"], one["scope"]) for one in CLIENTS if one["client_id"] == client]
    return oidc.token(issuer.url, client, secret, resource=resource, scope=allowed if scope is None else scope)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


async def asked(http: httpx2.AsyncClient, text: str, *, tool: str = "echo") -> list[httpx2.Response]:
    """The answers to a job over REST and a call over MCP that show this token."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {}}}
    accept = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}
    return [
        await http.post("/v1/jobs", json={"tool": tool, "arguments": {}}, headers=bearer(text)),
        await http.post("/mcp", json=call, headers={**bearer(text), **accept}),
    ]


async def counts(http: httpx2.AsyncClient, text: str) -> bool:
    """Whether the token does. One that does not is challenged as RFC 6750 wants it."""
    answer = await http.get("/v1/tools", headers=bearer(text))
    assert answer.status_code in (200, 401), answer.text
    assert answer.status_code == 200 or 'error="invalid_token"' in answer.headers["www-authenticate"]
    return answer.status_code == 200


@pytest.mark.parametrize("auth", ["oauth", "keys+oauth"])
async def test_a_token_for_us_is_taken_over_rest_and_mcp_in_both_revisions(
    tmp_path: Path, issuer: Running, auth: str
) -> None:
    async with gateway(tmp_path, issuer, auth=auth) as one, actors(one, {"echo": echo}):
        headers = bearer(token(issuer))
        async with httpx2.AsyncClient(base_url=one.url, headers=headers, timeout=60) as http:
            made = await http.post("/v1/jobs", json={"tool": "echo", "arguments": {"n": 1}})
            assert made.status_code == 202, made.text
            job = await eventually(lambda: _result(http, made.json()["job_id"]), WAIT_S)
            assert (job["result"], (await one.jobs.get(job["job_id"])).owner) == ({"n": 1}, "oauth:alice")
            for era in ERAS:
                transport = streamable_http_client(f"{one.url}/mcp", http_client=http)
                async with McpClient(transport, mode=era) as mcp:
                    assert [each.name for each in (await mcp.list_tools()).tools] == ["echo"]
                    assert (await mcp.call_tool("echo", {"n": 2})).structured_content == {"n": 2}


async def _result(http: httpx2.AsyncClient, job_id: str) -> dict[str, Any] | None:
    answer = await http.get(f"/v1/jobs/{job_id}/result")
    return {"job_id": job_id, **answer.json()} if answer.status_code == 200 else None


async def test_what_the_issuer_gave_for_others_or_somebody_changed_is_refused(tmp_path: Path, issuer: Running) -> None:
    head, body, signature = (good := token(issuer)).split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**claims, "scope": "tools:* admin"}).encode()).decode().rstrip("=")
    refused = {
        "for another resource": token(issuer, resource="https://other.example.com/mcp"),
        "for a longer name": token(issuer, resource=f"{PUBLIC}.evil.example.com"),
        "opaque, for nobody": token(issuer, resource=""),
        "with other claims": f"{head}.{forged}.{signature}",
        "with another signature": f"{head}.{body}.{token(issuer).split('.')[2]}",
        "without a signature": f"{head}.{body}.",
    }
    async with gateway(tmp_path, issuer) as one, one.http() as http:
        assert await counts(http, good)
        for why, text in refused.items():
            for answer in await asked(http, text):
                assert answer.status_code == 401, why
                challenge = answer.headers["www-authenticate"]
                assert 'error="invalid_token"' in challenge, why
                assert f'resource_metadata="{PUBLIC}/.well-known/oauth-protected-resource' in challenge, why


async def test_a_gateway_believes_its_own_issuer_alone_whatever_that_signs_with(
    tmp_path: Path, issuer: Running, own_server: Callable[..., Running]
) -> None:
    other = own_server("oidc", clients=CLIENTS, algorithm="ES256")
    async with gateway(tmp_path / "one", issuer) as one, one.http() as http:
        assert [await counts(http, token(each)) for each in (issuer, other)] == [True, False]
    async with gateway(tmp_path / "two", other) as two, two.http() as http:
        assert [await counts(http, token(each)) for each in (issuer, other)] == [False, True]


@pytest.mark.parametrize(
    ("client", "scope", "wanted"),
    [("alice", "tools:echo", "agents"), ("reader", "read", "agents"), ("reader", "openid", "agents")],
)
async def test_a_token_without_the_scope_is_403_that_names_the_issuers_word_for_it(
    tmp_path: Path, issuer: Running, client: str, scope: str, wanted: str
) -> None:
    async with gateway(tmp_path, issuer) as one, one.http() as http:
        for answer in await asked(http, token(issuer, client, scope=scope), tool="other"):
            assert answer.status_code == 403, answer.text
            challenge = answer.headers["www-authenticate"]
            assert challenge.startswith("Bearer ")
            assert 'error="insufficient_scope"' in challenge
            assert f'scope="{wanted}"' in challenge
        rest, _ = await asked(http, token(issuer, "agent"), tool="other")
        assert rest.status_code == 202
        dead = await http.get("/v1/dead", headers=bearer(token(issuer, client, scope=scope)))
        assert dead.status_code == (200 if scope == "read" else 403)
        assert scope == "read" or 'scope="read"' in dead.headers["www-authenticate"]


@pytest.mark.slow
async def test_a_token_counts_until_it_expires_and_not_longer(
    tmp_path: Path, own_server: Callable[..., Running]
) -> None:
    server = own_server("oidc", clients=CLIENTS, lifetime_s=LIFETIME_S)
    dead_for_s = LIFETIME_S + tokens.LEEWAY_S
    async with gateway(tmp_path, server) as one, one.http() as http:
        for ahead_s, taken in ((-dead_for_s - 1, False), (600.0, False), (0.0, True)):
            oidc.set_clock(server.url, ahead_s)
            assert await counts(http, token(server)) is taken, ahead_s
        oidc.set_clock(server.url, 6.0 - dead_for_s)
        text = token(server)
        assert await counts(http, text)

        async def refused() -> bool:
            return not await counts(http, text)

        assert await eventually(refused, WAIT_S)  # though it was verified before


@pytest.mark.slow
async def test_tokens_of_a_new_key_are_taken_by_a_gateway_that_goes_on_and_those_of_a_withdrawn_key_are_not(
    tmp_path: Path, issuer: Running
) -> None:
    before, shown_late = token(issuer), token(issuer)
    async with gateway(tmp_path, issuer) as one, one.http() as http:
        assert await counts(http, before)
        oidc.rotate(issuer.url)
        after = token(issuer)
        started = time.monotonic()
        assert await eventually(lambda: counts(http, after), WAIT_S)
        assert time.monotonic() - started < AGAIN_S + tokens.REFUSED_S + 20
        assert not await counts(http, shown_late)


async def test_keys_are_asked_for_again_after_ten_seconds_and_a_withdrawn_one_counts_five_minutes_at_most(
    issuer: Running,
) -> None:
    clock = VirtualClock(now_ms=int(time.time() * 1000))
    rules = TokenRules(issuer=issuer.url, audiences=(f"{PUBLIC}/mcp",))
    verifier = TokenVerifier(rules, KeySet(issuer.url, clock=clock), clock=clock)
    try:
        old = [token(issuer) for _ in range(3)]
        assert await verifier.verify(old[0]) is not None
        oidc.rotate(issuer.url, keep=True)
        second = token(issuer)
        assert await verifier.verify(second) is None  # it has asked for keys this very moment
        clock.advance(AGAIN_S)
        assert await verifier.verify(second) is not None
        assert await verifier.verify(old[1]) is not None  # its key is still published
        oidc.rotate(issuer.url)
        clock.advance(AGAIN_S)
        assert await verifier.verify(token(issuer)) is not None
        assert await verifier.verify(old[2]) is None
        assert await verifier.verify(old[1]) is not None  # was verified before its key was withdrawn
        clock.advance(tokens.KNOWN_S - 2 * AGAIN_S)
        assert await verifier.verify(old[1]) is not None
        clock.advance(2 * AGAIN_S)
        assert [await verifier.verify(text) for text in (*old, second)] == [None] * 4
    finally:
        await verifier.aclose()


@pytest.mark.slow
@pytest.mark.fault
async def test_without_the_issuer_known_keys_go_on_and_a_gateway_that_knows_none_says_503(
    tmp_path: Path, own_server: Callable[..., Running]
) -> None:
    server = own_server("oidc", clients=CLIENTS)
    shown, not_shown = token(server), token(server)
    async with gateway(tmp_path / "one", server) as one, one.http() as http:
        assert await counts(http, shown)
        oidc.rotate(server.url, keep=True)
        of_a_new_key = token(server)
        await asyncio.to_thread(server.kill)
        assert [await counts(http, text) for text in (shown, not_shown, of_a_new_key)] == [True, True, False]
        async with gateway(tmp_path / "two", server) as two, two.http() as late:
            for answer in await asked(late, shown):
                assert answer.status_code == 503, answer.text
                assert server.url in answer.text
            assert (await late.get("/livez")).status_code == 200
            await asyncio.to_thread(server.start)
            for client, text in ((late, shown), (http, of_a_new_key)):
                assert await eventually(lambda client=client, text=text: _taken(client, text), WAIT_S)


async def _taken(http: httpx2.AsyncClient, text: str) -> bool:
    return (await http.get("/v1/tools", headers=bearer(text))).status_code == 200


class Kept:
    """What a client of the SDK keeps its tokens in."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


@pytest.mark.parametrize("era", ERAS)
async def test_the_official_client_finds_the_issuer_by_our_challenge_and_gets_its_own_token(
    tmp_path: Path, issuer: Running, era: str
) -> None:
    ports = Ports()
    port, kept = ports.take(), Kept()
    url = f"http://127.0.0.1:{port}"
    try:
        async with gateway(tmp_path, issuer, port=port, public_url=url) as one, actors(one, {"echo": echo}):
            async with one.http() as http:
                found = (await http.get("/.well-known/oauth-protected-resource/mcp")).json()
            assert (found["resource"], found["authorization_servers"]) == (f"{url}/mcp", [issuer.url])
            flow = ClientCredentialsOAuthProvider(
                f"{url}/mcp", kept, "agent", "of-agent", scope="agents", issuer=issuer.url
            )
            async with httpx2.AsyncClient(auth=flow, timeout=60) as http:
                transport = streamable_http_client(f"{url}/mcp", http_client=http)
                async with McpClient(transport, mode=era) as mcp:
                    assert (await mcp.call_tool("echo", {"n": 3})).structured_content == {"n": 3}
    finally:
        ports.release()
    assert kept.tokens is not None
    claims = json.loads(base64.urlsafe_b64decode(kept.tokens.access_token.split(".")[1] + "=="))
    assert (claims["aud"], claims["iss"], claims["scope"]) == (f"{url}/mcp", issuer.url, "agents")
