"""What an App declares for the bus: checked where it stands, started together, described as AsyncAPI."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from groundplane.app import App
from groundplane.bus import Bus, CallContext, CommandContext, start
from groundplane.core.errors import InvalidArgument


class Quote(msgspec.Struct):
    symbol: str
    price: float


def shop(seen: list[Any]) -> App:
    app = App("shop")

    @app.rpc("quotes.get")
    async def quote(symbol: str, ctx: CallContext, shift: float = 0.0) -> Quote:
        """The price of a symbol."""
        return Quote(symbol, 12.5 + shift)

    @app.rpc("quotes.sync", concurrency=2)
    def in_a_thread(symbol: str) -> str:
        return symbol.lower()

    @app.on("orders.*")
    async def order(event: Any) -> None:
        """Sees orders."""
        seen.append(event.payload)

    @app.command("reports.render")
    async def render(month: int, ctx: CommandContext) -> dict[str, int]:
        """Renders a month."""
        await ctx.progress(50)
        return {"month": month}

    assert quote.__name__ == "quote"
    return app


@pytest.mark.anyio
async def test_what_an_app_declares_is_started_on_a_bus(tmp_path: Path) -> None:
    seen: list[Any] = []
    app = shop(seen)
    async with Bus.open(state=tmp_path, name="shop") as bus, start(bus, app.endpoints, instance="one"):
        assert await bus.request("quotes", "get", {"symbol": "A"}, result_type=Quote) == Quote("A", 12.5)
        assert await bus.request("quotes", "sync", {"symbol": "A"}, instance="one") == "a"
        await bus.publish("orders", "created", 7)
        async with bus.track("reports", "render", {"month": 3}) as tracked:
            assert await tracked.result() == {"month": 3}
        async with asyncio.timeout(10):
            while seen != [7]:
                await asyncio.sleep(0.005)


@pytest.mark.req("BUS-18.2")
def test_the_document_of_an_app_is_asyncapi_3_and_refers_to_nothing_that_is_not_there() -> None:
    document = shop([]).asyncapi(version="2.1.0")
    assert document["asyncapi"] == "3.0.0"
    assert document["info"] == {"title": "shop", "version": "2.1.0"}
    channels, operations = document["channels"], document["operations"]
    assert channels["rpc_quotes_get"]["address"] == "rpc.quotes.get"
    assert channels["events_orders_any"]["address"] == "events.orders.{part2}"
    assert set(channels["events_orders_any"]["parameters"]) == {"part2"}
    assert channels["commands_reports_render_callback"]["address"] == "commands.callback.{commandId}"
    assert operations["rpc_quotes_get"]["reply"]["channel"] == {"$ref": "#/channels/rpc_quotes_get"}
    assert {one["action"] for one in operations.values()} == {"receive", "send"}
    schemas = document["components"]["schemas"]
    assert schemas["rpc_quotes_get_params"]["required"] == ["symbol"]
    assert set(schemas["rpc_quotes_get_params"]["properties"]) == {"symbol", "shift"}
    assert schemas["rpc_quotes_get_result"] == {"$ref": "#/components/schemas/Quote"}
    text = json.dumps(document)
    for reference in {part.partition('"')[0] for part in text.split('"$ref": "')[1:]}:
        found: Any = document
        for step in reference.removeprefix("#/").split("/"):
            assert step in found, reference
            found = found[step]


@pytest.mark.parametrize(
    ("declare", "field"),
    [
        (lambda app: app.rpc("quotes"), "rpc"),
        (lambda app: app.rpc("a.b.c"), "rpc"),
        (lambda app: app.rpc("a.*"), "method"),
        (lambda app: app.rpc("a.b", concurrency=0), "concurrency"),
        (lambda app: app.on("*.>"), "pattern"),
        (lambda app: app.on("orders.*", mode="all"), "mode"),
        (lambda app: app.on("orders.*", attempts=0), "attempts_max"),
        (lambda app: app.command("callback.x"), "service"),
        (lambda app: app.command(7), "command"),
    ],
)
def test_mistakes_are_named_where_they_are_declared(declare: Any, field: str) -> None:
    async def handler(event: Any) -> None: ...

    with pytest.raises(InvalidArgument, match=rf"^{field}: "):
        declare(App("shop"))(handler)


def test_a_handler_that_cannot_be_called_by_name_or_is_there_already_is_refused() -> None:
    app = App("shop")
    with pytest.raises(InvalidArgument, match="by position"):
        app.rpc("a.b")(lambda value, /: value)
    app.rpc("a.b")(lambda value: value)
    with pytest.raises(InvalidArgument, match=r"declared twice, first at test_endpoints\.py"):
        app.rpc("a.b")(lambda value: value)
