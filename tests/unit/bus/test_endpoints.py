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


class Event(msgspec.Struct):
    """Not the one of the bus."""

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
    assert channels["rpc.quotes.get"]["address"] == "rpc.quotes.get"
    assert channels["events.orders._any"]["address"] == "events.orders.{part2}"
    assert set(channels["events.orders._any"]["parameters"]) == {"part2"}
    assert channels["commands.reports.render.callback"]["address"] == "commands.callback.{commandId}"
    assert operations["rpc.quotes.get"]["reply"]["channel"] == {"$ref": "#/channels/rpc.quotes.get.reply"}
    assert channels["rpc.quotes.get.reply"]["address"] is None
    assert {one["action"] for one in operations.values()} == {"receive", "send"}
    schemas = document["components"]["schemas"]
    assert schemas["rpc.quotes.get.params"]["required"] == ["symbol"]
    assert set(schemas["rpc.quotes.get.params"]["properties"]) == {"symbol", "shift"}
    assert field(document, "rpc.quotes.get.reply", "response", "result") == {"$ref": "#/components/schemas/Quote"}
    text = json.dumps(document)
    for reference in {part.partition('"')[0] for part in text.split('"$ref": "')[1:]}:
        found: Any = document
        for step in reference.removeprefix("#/").split("/"):
            assert step in found, reference
            found = found[step]


def field(document: Any, channel: str, message: str, name: str) -> Any:
    """What a message says about one of its fields."""
    found = document["channels"][channel]["messages"][message]["payload"]["allOf"][1]["properties"][name]
    return found if not found.get("$ref", "").endswith(".params") else resolved(document, found)


def resolved(document: Any, reference: dict[str, str]) -> Any:
    return document["components"]["schemas"][reference["$ref"].rpartition("/")[2]]


@pytest.mark.req("BUS-18.2")
def test_what_has_nearly_the_same_name_stays_apart_in_the_document() -> None:
    app = App("shop")

    @app.rpc("a_b.c")
    async def one(first: int) -> Event: ...

    @app.rpc("a.b_c")
    async def two(second: str) -> Quote: ...

    @app.command("a.b")
    async def three(third: int) -> None: ...

    @app.command("a.b_progress")
    async def four(fourth: int) -> None: ...

    for number, pattern in enumerate(("orders.*", "orders.any", "orders.>", "orders.rest", "orders.*")):

        @app.on(pattern, group=f"g{number}")
        async def seen(event: Any) -> None: ...

    document = app.asyncapi()
    wanted = {"rpc.a_b.c", "rpc.a.b_c", "commands.a.b", "commands.a.b_progress"}
    wanted |= {f"events.orders.{one}" for one in ("{part2}", "any", "{rest}", "rest")}
    assert wanted <= {one["address"] for one in document["channels"].values()}
    assert len(document["operations"]) == 2 + 2 * 3 + 5
    assert set(field(document, "rpc.a_b.c", "request", "params")["properties"]) == {"first"}
    assert set(field(document, "rpc.a.b_c", "request", "params")["properties"]) == {"second"}
    answer = field(document, "rpc.a_b.c.reply", "response", "result")
    assert set(resolved(document, answer)["properties"]) == {"price"}
    event = document["channels"]["events.orders.any"]["messages"]["event"]["payload"]
    assert "event_type" in resolved(document, event)["properties"]


@pytest.mark.req("BUS-10.3")
@pytest.mark.parametrize("handler", [lambda: None, lambda a, b: None, lambda *, event: None, lambda a, b, ctx: None, 7])
def test_a_handler_that_takes_no_event_is_refused_where_it_is_declared(handler: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^handler: "):
        App("shop").on("orders.*", group="g")(handler)


@pytest.mark.parametrize(
    "handler", [lambda event: None, lambda event, ctx: None, lambda event, more=1: None, lambda *all: None, print]
)
def test_a_handler_that_takes_an_event_is_taken(handler: Any) -> None:
    app = App("shop")
    app.on("orders.*", group="g")(handler)
    assert len(app.endpoints.events) == 1


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
    with pytest.raises(InvalidArgument, match="cannot be read"):
        app.rpc("a.b")(max)
    app.rpc("a.b")(lambda value: value)
    with pytest.raises(InvalidArgument, match=r"declared twice, first at test_endpoints\.py"):
        app.rpc("a.b")(lambda value: value)
