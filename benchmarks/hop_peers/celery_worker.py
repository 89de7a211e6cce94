"""Celery: a worker with the solo pool, late acks, quorum queues, confirmed publishes; a task that sends the next."""

from __future__ import annotations

import os
import threading
import time

from celery import Celery
from kombu import Queue

from benchmarks.hop_peers import FIRST, PAYLOAD, QUORUM, SECOND, WINDOW, asked, tell

work = asked()
queues = [Queue(name, durable=True, queue_arguments=QUORUM) for name in (FIRST, SECOND)]
app = Celery("bench", broker=work.url.replace("amqp://", "pyamqp://"))
app.conf.update(
    task_queues=queues,
    task_default_queue=FIRST,
    task_default_queue_type="quorum",
    task_acks_late=True,
    task_ignore_result=True,
    broker_transport_options={"confirm_publish": True},
    worker_prefetch_multiplier=WINDOW,
    worker_enable_remote_control=False,
)
stamps: list[float] = []
done = threading.Event()


@app.task(name="second")
def second(payload: str) -> None:
    pass


@app.task(name="first")
def first(payload: str) -> None:
    second.apply_async((payload,), queue=SECOND)
    stamps.append(time.perf_counter())
    if len(stamps) == work.count * work.rounds:
        done.set()


def watch() -> None:
    done.wait(240)
    ends = [stamps[work.count * number - 1] for number in range(1, work.rounds + 1)]
    begins = [stamps[work.count * number] for number in range(work.rounds)]
    tell([(work.count - 1) / (end - begin) for begin, end in zip(begins, ends, strict=True)])
    os._exit(0)  # a worker that is asked politely takes seconds


with app.connection_for_write() as connection:
    for queue in queues:
        queue(connection.default_channel).declare()
        connection.default_channel.queue_purge(queue.name)
for _ in range(work.count * work.rounds):
    first.apply_async((PAYLOAD,), queue=FIRST)
threading.Thread(target=watch, daemon=True).start()
app.Worker(
    pool="solo", concurrency=1, loglevel="ERROR", queues=[FIRST],
    without_gossip=True, without_mingle=True, without_heartbeat=True,
).start()  # fmt: skip
