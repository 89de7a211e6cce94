"""aio-pika by hand: a window of 200 and a task for each message."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aio_pika

from benchmarks.hop_peers import BODY, FIRST, HEADERS, QUORUM, SECOND, WINDOW, asked, tell


def message(body: bytes, headers: Any) -> aio_pika.Message:
    return aio_pika.Message(body, headers=headers, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)


async def main() -> None:
    work = asked()
    async with await aio_pika.connect(work.url) as connection:
        consuming, publishing = await connection.channel(), await connection.channel(publisher_confirms=True)
        await consuming.set_qos(prefetch_count=WINDOW)
        source, target = [await consuming.declare_queue(one, durable=True, arguments=QUORUM) for one in (FIRST, SECOND)]
        await source.purge()
        rates = []
        for _ in range(work.rounds):
            await target.purge()
            rates.append(await round_of(work.count, source, publishing.default_exchange))
        tell(rates)


async def round_of(count: int, source: Any, exchange: Any) -> float:
    for _ in range(0, count, WINDOW):
        await asyncio.gather(*(exchange.publish(message(BODY, HEADERS), FIRST) for _ in range(WINDOW)))
    seen, done = 0, asyncio.Event()

    async def hop(delivery: Any) -> None:
        nonlocal seen
        await exchange.publish(message(delivery.body, delivery.headers), SECOND)
        await delivery.ack()
        seen += 1
        if seen == count:
            done.set()

    begin = time.perf_counter()
    tag = await source.consume(hop)
    await asyncio.wait_for(done.wait(), 120)
    rate = count / (time.perf_counter() - begin)
    await source.cancel(tag)
    return rate


asyncio.run(main())
