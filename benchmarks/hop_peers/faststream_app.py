"""FastStream: a subscriber that publishes, quorum queues, confirmed publishes, acknowledged after the handler."""

from __future__ import annotations

import asyncio
import os
import time

from faststream import AckPolicy
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

from benchmarks.hop_peers import FIRST, HEADERS, PAYLOAD, SECOND, WINDOW, asked, tell

work = asked()
broker = RabbitBroker(work.url, default_channel=Channel(prefetch_count=WINDOW), logger=None)
source, target = (RabbitQueue(name, queue_type=QueueType.QUORUM, durable=True) for name in (FIRST, SECOND))
subscriber = broker.subscriber(source, ack_policy=AckPolicy.NACK_ON_ERROR)
stamps: list[float] = []
done = asyncio.Event()


@subscriber
async def first(payload: str) -> None:
    await broker.publish(payload, target, headers=HEADERS, persist=True)
    stamps.append(time.perf_counter())
    if len(stamps) == work.count:
        done.set()


async def main() -> None:
    await broker.connect()
    for queue in (source, target):
        await (await broker.declare_queue(queue)).purge()
    rates: list[float] = []
    for number in range(work.rounds):
        stamps.clear()
        done.clear()
        for _ in range(0, work.count, WINDOW):
            await asyncio.gather(
                *(broker.publish(PAYLOAD, source, headers=HEADERS, persist=True) for _ in range(WINDOW))
            )
        await (subscriber.start() if number else broker.start())
        await asyncio.wait_for(done.wait(), 120)
        rates.append((work.count - 1) / (stamps[-1] - stamps[0]))
        await subscriber.stop()
    tell(rates)
    os._exit(0)


asyncio.run(main())
