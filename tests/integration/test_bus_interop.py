"""The documented wire format, spoken by clients of NATS in Go and JavaScript that know nothing else of Groundplane."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from groundplane.bus import Bus, CommandContext, ReceivedEvent
from groundplane.core.errors import NotFound
from groundplane.testing import eventually
from groundplane.testing.toolchains import Toolchain
from interop_clients import built_by_go, run_by_node, running

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.req("BUS-19"),
]
PLANE = "interop.eu"  # a dot in it is a ~ on the wire
TOKEN = "interop~eu"


async def quote(symbol: str) -> dict[str, Any]:
    if symbol == "none":
        raise NotFound("symbol: 'none' is not listed")
    return {"symbol": symbol, "price": 12.5}


async def render(pages: int, ctx: CommandContext) -> dict[str, int]:
    for page in range(pages):
        await ctx.progress(100 * page / pages, f"page {page}")
    return {"pages": pages}


@pytest.fixture(scope="module")
def go_client(go_toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return built_by_go(go_toolchain, tmp_path_factory.mktemp("go"))


@pytest.fixture(scope="module")
def node_client(node_toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return run_by_node(node_toolchain, tmp_path_factory.mktemp("node"))


@pytest.mark.go
async def test_a_client_in_go_calls_publishes_commands_and_serves(nats_url: str, go_client: list[str]) -> None:
    await speaks(nats_url, go_client, "go")


@pytest.mark.node
async def test_a_client_in_javascript_calls_publishes_commands_and_serves(
    nats_url: str, node_client: list[str]
) -> None:
    await speaks(nats_url, node_client, "node")


async def speaks(url: str, command: list[str], name: str) -> None:
    seen: list[ReceivedEvent] = []

    async def see(event: ReceivedEvent) -> None:
        seen.append(event)

    async with (
        Bus.open(url, namespace=PLANE, name="desk") as bus,
        bus.serve("quotes", {"get": quote}),
        bus.subscribe("orders.*", see),
        bus.handle("reports", {"render": render}),
        running(command, url, TOKEN) as client,
    ):
        calls_ours(client.told, name)
        await eventually(lambda: len(seen) >= 3)
        publishes_ours(seen, name)
        runs_ours(client.told["command"], name)
        assert (await bus.result(f"{name}-command")) == {"pages": 5}
        await serves_ours(bus, name)


def calls_ours(told: dict[str, Any], name: str) -> None:
    """In JSON and in MessagePack, each answered in kind; a handler's error; nobody there."""
    answer = told["answer"]
    assert (answer["correlation_id"], answer["success"]) == (f"{name}-1", True)
    assert answer["result"] == {"symbol": "ACME", "price": 12.5}
    assert told["packed"]["first"] >= 0x80
    assert told["packed"]["answer"]["result"] == {"symbol": "ACME", "price": 12.5}
    assert not told["error"]["success"]
    assert (told["error"]["error"]["code"], told["error"]["error"]["message"]) == (
        "not_found", "symbol: 'none' is not listed",
    )  # fmt: skip
    assert told["nobody"] is True


def publishes_ours(seen: list[ReceivedEvent], name: str) -> None:
    """Once each, in order; what is not in the message is taken from the subject."""
    assert [one.payload for one in seen] == [{"n": n, "city": "Zürich"} for n in (1, 2, 3)]
    assert [one.id for one in seen] == [f"{name}-event-{n}" for n in (1, 2, 3)]
    assert {(one.domain, one.type, one.version) for one in seen} == {("orders", "created", "2.0")}


def runs_ours(command: dict[str, Any], name: str) -> None:
    end, percents = command["end"], command["percents"]
    assert (end["correlation_id"], end["status"], end["result"]) == (f"{name}-command", "succeeded", {"pages": 5})
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)
    assert len(percents) >= 5


async def serves_ours(bus: Bus, name: str) -> None:
    expected = {"symbol": "ACME", "price": 12.5, "served_by": name}
    for codec in ("msgpack", "json"):
        assert await bus.request("prices", "get", {"symbol": "ACME"}, codec=codec) == expected
    with pytest.raises(NotFound, match="'none' is not listed") as refused:
        await bus.request("prices", "get", {"symbol": "none"})
    assert refused.value.reason == "unlisted"
    several = await asyncio.gather(*(bus.request("prices", "get", {"symbol": "ACME"}) for _ in range(20)))
    assert several == [expected] * 20
