"""Taskiq on aio-pika: its receiver with 200 tasks at once, quorum queues, confirmed publishes."""

from __future__ import annotations

import asyncio
import os
import time

from taskiq.receiver import Receiver
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType

from benchmarks.hop_peers import PAYLOAD, WINDOW, asked, tell


def broker(name: str) -> AioPikaBroker:
    def queue(suffix: str) -> Queue:
        return Queue(name=name + suffix, type=QueueType.QUORUM)

    return AioPikaBroker(
        work.url, qos=WINDOW, exchange=Exchange(name=name), task_queues=[queue("")],
        dead_letter_queue=queue(".dead"), delay_queue=queue(".delay"),
    )  # fmt: skip


work = asked()
source, target = broker("taskiq-first"), broker("taskiq-second")
stamps: list[float] = []
done = asyncio.Event()


@target.task(task_name="second")
async def second(payload: str) -> None:
    pass


@source.task(task_name="first")
async def first(payload: str) -> None:
    await second.kiq(payload)
    stamps.append(time.perf_counter())
    if len(stamps) == work.count:
        done.set()


async def main() -> None:
    source.is_worker_process = True
    await target.startup()
    await source.startup()
    rates = []
    for _ in range(work.rounds):
        stamps.clear()
        done.clear()
        for _ in range(0, work.count, WINDOW):
            await asyncio.gather(*(first.kiq(PAYLOAD) for _ in range(WINDOW)))
        listening = asyncio.create_task(Receiver(source, max_async_tasks=WINDOW).listen(asyncio.Event()))
        await asyncio.wait_for(done.wait(), 120)
        rates.append((work.count - 1) / (stamps[-1] - stamps[0]))
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    tell(rates)
    os._exit(0)


asyncio.run(main())
