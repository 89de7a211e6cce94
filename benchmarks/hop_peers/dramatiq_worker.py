"""Dramatiq: one worker thread, confirmed publishes; quorum queues by an override, as it has no setting for them."""

from __future__ import annotations

import threading
import time
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.hop_peers import FIRST, PAYLOAD, QUORUM, SECOND, asked, tell

work = asked()


class QuorumBroker(RabbitmqBroker):
    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        return {**super()._build_queue_arguments(queue_name), **QUORUM}


broker = QuorumBroker(url=work.url, confirm_delivery=True, middleware=[])
dramatiq.set_broker(broker)
stamps: list[float] = []
done = threading.Event()


@dramatiq.actor(queue_name=SECOND)
def second(payload: str) -> None:
    pass


@dramatiq.actor(queue_name=FIRST)
def first(payload: str) -> None:
    second.send(payload)
    stamps.append(time.perf_counter())
    if len(stamps) == work.count:
        done.set()


rates = []
for _ in range(work.rounds):
    stamps.clear()
    done.clear()
    for name in (FIRST, SECOND):
        broker.declare_queue(name, ensure=True)
        broker.flush(name)
    for _ in range(work.count):
        first.send(PAYLOAD)
    worker = dramatiq.Worker(broker, queues={FIRST}, worker_threads=1)
    worker.start()
    done.wait(120)
    rates.append((work.count - 1) / (stamps[-1] - stamps[0]))
    worker.stop()
tell(rates)
