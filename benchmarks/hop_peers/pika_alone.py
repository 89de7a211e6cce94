"""pika by hand: its callback connection with a window of 200, confirms counted."""

from __future__ import annotations

import time
from typing import Any

import pika

from benchmarks.hop_peers import BODY, FIRST, HEADERS, QUORUM, SECOND, WINDOW, asked, tell

PROPERTIES = pika.BasicProperties(headers=HEADERS, delivery_mode=2)


def fill(url: str, count: int) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    for name in (FIRST, SECOND):
        channel.queue_declare(name, durable=True, arguments=QUORUM)
        channel.queue_purge(name)
    channel.tx_select()
    for _ in range(count):
        channel.basic_publish("", FIRST, BODY, PROPERTIES)
    channel.tx_commit()
    connection.close()


class Hops:
    """One round: deliveries by the number of their publish."""

    def __init__(self, url: str, count: int) -> None:
        self._left = count
        self._published = 0
        self._unconfirmed: dict[int, int] = {}
        self.begin = self.end = 0.0
        parameters = pika.URLParameters(url)
        self._connection = pika.SelectConnection(
            parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._opened),
            on_close_callback=lambda connection, _: connection.ioloop.stop(),
        )
        self._connection.ioloop.start()

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.confirm_delivery(self._confirmed)
        channel.basic_qos(prefetch_count=WINDOW, callback=self._start)

    def _start(self, _frame: Any) -> None:
        self.begin = time.perf_counter()
        self._channel.basic_consume(FIRST, self._delivered)

    def _delivered(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._published += 1
        self._unconfirmed[self._published] = method.delivery_tag
        channel.basic_publish("", SECOND, body, properties, mandatory=True)

    def _confirmed(self, frame: Any) -> None:
        last = frame.method.delivery_tag
        for number in [one for one in self._unconfirmed if one <= last] if frame.method.multiple else [last]:
            self._channel.basic_ack(self._unconfirmed.pop(number))
            self._left -= 1
        if not self._left:
            self.end = time.perf_counter()
            self._connection.close()


def main() -> None:
    work = asked()
    rates = []
    for _ in range(work.rounds):
        fill(work.url, work.count)
        hops = Hops(work.url, work.count)
        rates.append(work.count / (hops.end - hops.begin))
    tell(rates)


main()
