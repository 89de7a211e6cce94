"""What a namespace has on the broker, and under which names.

A colon separates: no name of a plane or a queue contains one, so no two planes and no two queues ever mix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from groundplane.core.errors import InvalidArgument

EXCHANGE = "groundplane"
DELIVERY_LIMIT = 2**31 - 1
"""So high that the broker never drops for it; without one a quorum queue of 3.10 puts what is returned to its end."""

RETURNS_BYTES_MAX = 64_000_000
_SEGMENT_BYTES = 4_000_000

QUORUM: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
REGISTRY: dict[str, Any] = {"x-queue-type": "stream"}
RETURNS: dict[str, Any] = {
    "x-queue-type": "stream",
    "x-max-length-bytes": RETURNS_BYTES_MAX,
    "x-stream-max-segment-size-bytes": _SEGMENT_BYTES,
}


NAMES_MAX = 244
"""Characters of the names of a plane and of a queue together: with a colon and `:dead:desk` AMQP's 255 bytes."""


class Declared(NamedTuple):
    """A queue of the broker and the arguments it is declared with."""

    name: str
    arguments: dict[str, Any]


class Names:
    """The names of one namespace. The routing key of a queue is its name."""

    def __init__(self, namespace: str, exchange: str = EXCHANGE) -> None:
        self.namespace = namespace
        self.exchange = exchange
        self.registry = f"{namespace}::registry"
        self.returns = f"{namespace}::returns"

    def ready(self, queue: str) -> str:
        """Where messages wait for their turn."""
        return f"{self.namespace}:{queue}"

    def delayed(self, queue: str) -> str:
        """Where messages wait for their time."""
        return f"{self.namespace}:{queue}:delayed"

    def dead(self, queue: str) -> str:
        """Where dead letters lie."""
        return f"{self.namespace}:{queue}:dead"

    def of_namespace(self) -> Iterator[Declared]:
        """What a namespace has once: the log of declared queues, and the log of what was handed back."""
        yield Declared(self.registry, REGISTRY)
        yield Declared(self.returns, RETURNS)

    def check(self, queue: str) -> None:
        """`invalid_argument` for a queue whose names would not fit into AMQP's 255 bytes."""
        if len(self.namespace) + len(queue) > NAMES_MAX:
            raise InvalidArgument(
                f"name: the plane {self.namespace!r} and the queue {queue!r} have {len(self.namespace) + len(queue)} "
                f"characters together; with RabbitMQ use at most {NAMES_MAX}"
            )

    def of_queue(self, queue: str) -> Iterator[Declared]:
        """What every queue has."""
        for name in (self.ready(queue), self.delayed(queue), self.dead(queue)):
            yield Declared(name, QUORUM)

    def asks(self, broker_queue: str) -> str:
        """The routing key of questions to those who hold messages of a queue of the broker."""
        return f"{broker_queue}:ask"
