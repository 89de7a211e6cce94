"""What each settlement means for the broker: which copies to publish, which deliveries to acknowledge then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from groundplane.backends.amqp import Message
from groundplane.core.errors import ErrorRecord
from groundplane.queues.drivers.rabbitmq import messages
from groundplane.queues.drivers.rabbitmq.intake import Taken
from groundplane.queues.drivers.rabbitmq.messages import Death
from groundplane.queues.drivers.rabbitmq.names import Names
from groundplane.queues.port import Ack, Nack, Settlement

EXHAUSTED = "attempts_exhausted"


class Plan(NamedTuple):
    """Publish `copies` of `copied`, then acknowledge `done`; `kept` go back into the buffer."""

    copies: list[Message]
    copied: list[Taken]
    done: list[Taken]
    kept: list[Taken]


def plan(
    names: Names, queue: str, settlements: Sequence[Settlement], held: Sequence[Taken], attempts_max: int, now_ms: int
) -> Plan:
    """What to do about `settlements`, of which the deliveries are `held`. A copy that is there is not made again."""
    copies: list[Message] = []
    copied: list[Taken] = []
    done: list[Taken] = []
    kept: list[Taken] = []
    for settlement, taken in zip(settlements, held, strict=True):
        if isinstance(settlement, Nack) and not settlement.counts and settlement.delay_s <= 0:
            kept.append(taken)
            continue
        done.append(taken)
        if taken.copied or isinstance(settlement, Ack):
            continue
        copied.append(taken)
        if isinstance(settlement, Nack):
            copies.append(_next(names, queue, settlement, taken, attempts_max, now_ms))
        else:
            copies.append(buried(names, queue, taken, settlement.reason, taken.attempt, settlement.error, now_ms))
    return Plan(copies, copied, done, kept)


def buried(
    names: Names, queue: str, taken: Taken, reason: str, attempts: int, error: ErrorRecord | None, now_ms: int
) -> Message:
    """The dead letter of a delivery."""
    note = messages.again(
        taken.note,
        now_ms=now_ms,
        attempt=attempts,
        error=error if error is not None else taken.note.error,
        death=Death(reason, attempts, now_ms),
    )
    return messages.encode_copy(names.exchange, names.dead(queue), note, taken.delivered.body)


def _next(names: Names, queue: str, nack: Nack, taken: Taken, attempts_max: int, now_ms: int) -> Message:
    if nack.counts and taken.attempt >= attempts_max:
        return buried(names, queue, taken, EXHAUSTED, taken.attempt, nack.error, now_ms)
    note = messages.again(
        taken.note,
        now_ms=now_ms,
        delay_s=nack.delay_s,
        attempt=taken.attempt + nack.counts,
        error=nack.error if nack.error is not None else taken.note.error,
        repeat=taken.note.repeat or taken.seen,
    )
    key = names.delayed(queue) if note.due_at else names.ready(queue)
    return messages.encode_copy(names.exchange, key, note, taken.delivered.body)
