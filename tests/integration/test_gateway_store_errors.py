"""What callers are told where a store fails: nothing of hosts, databases and roles, unless they may read it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from groundplane.core.errors import GroundplaneError
from groundplane.gateway.access import told
from groundplane.security.access import LOCAL, Caller
from served_gateway import house, tool
from wire.test_mcp_tasks import Caller as ModernClient

pytestmark = [pytest.mark.req("GATE-08")]

HIDDEN = "gateway: what it needs does not answer as it should; call again, or ask who runs it"


@pytest.mark.anyio
@pytest.mark.integration
async def test_what_a_store_says_of_itself_is_told_to_who_may_read_it_alone(tmp_path: Path) -> None:
    async with house(tmp_path, tool("echo"), auth="keys") as one, AsyncExitStack() as closing:
        clients = {}
        for scope in ("tools:*", "read"):
            made = await one.security.create_key(scope[:4], [scope])
            headers = {"Authorization": f"Bearer {made.secret.reveal()}"}
            http = httpx2.AsyncClient(base_url=one.url, timeout=30, headers=headers)
            clients[scope] = await closing.enter_async_context(http)
        assert {(await http.get("/v1/jobs")).status_code for http in clients.values()} == {200}
        await one.jobs.aclose()
        answers = {scope: (await http.get("/v1/jobs")) for scope, http in clients.items()}
        called = await ModernClient(clients["tools:*"], tasks=False).call("echo", {"n": 1})
    assert {answer.status_code for answer in answers.values()} == {503}
    assert answers["read"].json()["detail"] == "jobs: is closed; open it again to use it"
    assert answers["tools:*"].json()["detail"] == HIDDEN
    assert called["content"][0]["text"] == HIDDEN


@pytest.mark.parametrize("code", ["invalid_argument", "unavailable", "resource_exhausted", "permission_denied"])
def test_words_of_a_database_reach_nobody_who_may_not_read_them(code: Any) -> None:
    text = "database: 'postgresql://acme@db.internal/prod': role 'acme' may not"
    error = GroundplaneError(code, text, details={"sqlstate": "53300"})
    owner = Caller(principal="a", name="a", kind="key", scopes=("tools:*",))
    for seen in (told(None, error), told(owner, error)):
        assert (seen.code, "acme" in seen.message, seen.details) == (code, False, {})
    assert told(LOCAL, error) is error
    own = GroundplaneError("unavailable", "gateway: is shutting down; send the request again")
    assert told(None, own) is own
