"""A trading desk in one file: prices by request, orders as events, a book that fills them, a slow report with progress.

Three services, each in processes of its own (`serve.py`). Of the book any number may run; one of them is active.
"""

from __future__ import annotations

import asyncio
import os

import msgspec

from groundplane import App
from groundplane.bus import Bus, CommandContext, ReceivedEvent
from groundplane.core.errors import AlreadyExists, InvalidArgument, NotFound
from groundplane.kv import KV

app = App("desk")
book = app.single_active("book")

PRICES = {"ACME": 10_125, "GLOBEX": 4_210, "INITECH": 377}
EXCHANGE_S = 0.02
PAGE = 20


class Quote(msgspec.Struct):
    """The price of a share."""

    symbol: str
    cents: int


class Order(msgspec.Struct):
    """What somebody wants to buy."""

    order_id: str
    symbol: str
    quantity: int


class Fill(msgspec.Struct):
    """An order that was filled: at which price, and in whose term."""

    order_id: str
    symbol: str
    quantity: int
    cents: int
    term: int
    pid: int


class Desk:
    """What the handlers of this process work with; `serve.py` puts it here before it starts them."""

    bus: Bus
    kv: KV


desk = Desk()


@app.rpc("quotes.get")
async def quote(symbol: str) -> Quote:
    """The price of a share."""
    if symbol not in PRICES:
        raise NotFound(f"symbol: {symbol!r} is not traded here; {', '.join(PRICES)} are")
    return Quote(symbol=symbol, cents=PRICES[symbol])


@app.rpc("book.leader")
@book
async def leader() -> dict[str, int]:
    """Who fills orders now. The leader alone answers; the others say `not_active`, and whom to ask."""
    return {"pid": os.getpid(), "term": book.fence().term}


@app.on("orders.placed", group="book", concurrency=4, lease="3s", replay=True)
async def fill(event: ReceivedEvent) -> None:
    """Fill an order once, whatever becomes of this process meanwhile. Only the leader subscribes (`serve.py`).

    The fill is stored under the order's id and the leader's term: a second one is `already_exists`, and one by a leader
    that was deposed without noticing is refused. Whoever gets the order again says what was done before.
    """
    fence = book.fence()
    order = order_of(event)
    price = await desk.bus.request("quotes", "get", {"symbol": order.symbol}, result_type=Quote)
    await asyncio.sleep(EXCHANGE_S)  # the exchange takes its time
    done = Fill(
        order_id=order.order_id, symbol=order.symbol, quantity=order.quantity, cents=price.cents * order.quantity,
        term=fence.term, pid=os.getpid(),
    )  # fmt: skip
    key = f"fills/{order.order_id}"
    try:
        await desk.kv.create(key, msgspec.json.encode(done), fence=fence)
    except AlreadyExists:
        entry = await desk.kv.get(key)
        assert entry is not None, "fills are never deleted"
        done = msgspec.json.decode(entry.value, type=Fill)
    await desk.bus.publish("trades", "filled", msgspec.to_builtins(done), event_id=f"fill-{order.order_id}")


@app.command("reports.positions")
async def positions(ctx: CommandContext) -> dict[str, dict[str, int]]:
    """What the desk holds of each share and what it paid, read page by page. It says how far it is."""
    keys, cursor = [], None
    while True:
        page = await desk.kv.keys("fills/", cursor=cursor)
        keys += page.items
        cursor = page.cursor
        if cursor is None:
            break
    held = {symbol: {"quantity": 0, "cents": 0} for symbol in PRICES}
    for start in range(0, len(keys), PAGE):
        for entry in (await desk.kv.get_many(keys[start : start + PAGE])).values():
            one = msgspec.json.decode(entry.value, type=Fill)
            held[one.symbol]["quantity"] += one.quantity
            held[one.symbol]["cents"] += one.cents
        await asyncio.sleep(EXCHANGE_S * 5)  # an auditor turns the page
        await ctx.progress(100 * min(start + PAGE, len(keys)) / len(keys), f"{len(keys)} fills")
    return held


def order_of(event: ReceivedEvent) -> Order:
    """The order of an event. One that is none is not tried again: it becomes a dead letter at once."""
    try:
        return msgspec.convert(event.payload, Order)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"order: {event.payload!r} is none: {error}") from error
