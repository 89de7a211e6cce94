"""What the processes of the queues' tests do: `python queue_child.py ROLE PLACE NAMESPACE QUEUE …`.

PLACE is the state folder of embedded queues, or the URL of others.

Each line on stdout is one JSON value, written at once. A role that holds something ends by being killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from groundplane.core.errors import GroundplaneError
from groundplane.queues import Ack, OutgoingMessage, Queues


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


async def hold(queues: Queues, queue: str, count: str) -> None:
    """Receive `count`, say their ids, and never settle."""
    async with queues.consume(queue, max_in_flight=int(count)) as consumer:
        held: list[str] = []
        while len(held) < int(count):
            held += [one.id for one in await consumer.receive(int(count))]
        say(held)
        await asyncio.Event().wait()


async def hold_and_ack(queues: Queues, queue: str) -> None:
    """Receive one, say its id, wait for a line on stdin, then ack it and say what came of it."""
    async with queues.consume(queue, max_in_flight=1) as consumer:
        (held,) = await consumer.receive(1)
        say(held.id)
        await asyncio.to_thread(sys.stdin.readline)
        try:
            await consumer.settle([Ack(held)], [OutgoingMessage(queue=queue, id="late", payload=b"")])
            say("settled")
        except GroundplaneError as error:
            say(error.reason)
        (again,) = await consumer.receive(1, 10) or [None]
        say(again and again.id)


async def hop(queues: Queues, source: str, target: str, window: str) -> None:
    """Pass messages from one queue to another until killed; a header tells the attempt that did it."""
    async with queues.consume(source, max_in_flight=int(window)) as consumer:
        say("ready")
        while True:
            batch = await consumer.receive(int(window))
            sends = [
                OutgoingMessage(
                    queue=target,
                    id=one.id,
                    payload=one.payload,
                    headers={"attempt": str(one.attempt)},
                    dedup_key=one.id + ":1",
                )
                for one in batch
            ]
            await asyncio.sleep(0.003)  # the work: some kills are to hit it
            middle = len(batch) // 2
            await consumer.settle([Ack(one) for one in batch[:middle]], sends[:middle])
            await consumer.settle([Ack(one) for one in batch[middle:]], sends[middle:])


async def produce(queues: Queues, queue: str, name: str, count: str, size: str) -> None:
    """Send `count` messages in calls of `size`; says each id once its call has returned."""
    for first in range(0, int(count), int(size)):
        ids = [f"{name}-{n}" for n in range(first, min(first + int(size), int(count)))]
        await queues.send(*(OutgoingMessage(queue=queue, id=one, payload=one.encode()) for one in ids))
        say(ids)


async def consume(queues: Queues, queue: str, seconds: str) -> None:
    """Consume and ack, until nothing has come for `seconds`; says the ids it acknowledged."""
    async with queues.consume(queue, max_in_flight=32) as consumer:
        while batch := await consumer.receive(32, float(seconds)):
            await consumer.settle([Ack(one) for one in batch])
            say([one.id for one in batch])


async def echo_times(queues: Queues, queue: str, count: str) -> None:
    """Say when (monotonic clock) each of `count` messages was received."""
    async with queues.consume(queue, max_in_flight=1) as consumer:
        say("ready")
        for _ in range(int(count)):
            (one,) = await consumer.receive(1)
            at = time.monotonic()
            await consumer.ack(one)
            say(at)


async def main(role: str, place: str, namespace: str, *rest: str) -> None:
    where = {"url": place} if "://" in place else {"state": place}
    async with Queues.open(**where, namespace=namespace) as queues:
        await ROLES[role](queues, *rest)


ROLES = {role.__name__: role for role in (hold, hold_and_ack, hop, produce, consume, echo_times)}

if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
