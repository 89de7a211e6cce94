"""The port of durable work queues: what a driver must do, and the values that cross it.

Delivery guarantee of every driver: at least once, durable before `send` returns, never lost while its process,
consumer or
backend is killed. FIFO per queue with one consumer and no retries, best effort otherwise.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

import msgspec

from groundplane.core.dead_letters import DeadLetterSource
from groundplane.core.errors import ErrorRecord

MESSAGE_BYTES_MAX = 1024 * 1024
ATTEMPTS_MAX = 5
DEDUP_WINDOW_S = 600.0
MAY_REPEAT = "groundplane-may-repeat"
"""Header of a message that its sender may have sent before: whoever drops repeats looks it up. Its value is "1"."""


class Capability(enum.Flag):
    """What a driver declares; the suite tests what is there and asserts the refusal (`unsupported`) of what is not."""

    NONE = 0
    ATOMIC_SETTLE = enum.auto()
    """`settle` sends and settles in one transaction."""
    DEDUP = enum.auto()
    """A repeated `dedup_key` on one queue is dropped within the window."""
    LEASE = enum.auto()
    """A consumer can hold its deliveries by leases that it extends."""
    CARRY = enum.auto()
    """A settlement carries changes of other stores of the same database in its transaction."""


class QueueSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A queue. `attempts_max` hand-outs (crashes included) before a dead letter; `depth_max` messages before
    `resource_exhausted`.
    """

    name: str
    attempts_max: int = ATTEMPTS_MAX
    depth_max: int = 1_000_000


class OutgoingMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message to send. `delay_s` has a precision of 100 ms or better and survives a restart of the backend.

    `id` names it in dead letters; `dedup_key` (None: no de-duplication) drops repeats on the same queue for 10 minutes
    where the driver has `Capability.DEDUP`; elsewhere the consumer de-duplicates. `urgent=False` is a hint that nobody
    waits for it: a driver may leave idle consumers asleep for up to half a second, and hand out many at once then.
    """

    queue: str
    payload: bytes
    id: str
    headers: dict[str, str] = {}
    delay_s: float = 0.0
    attempt: int = 1
    dedup_key: str | None = None
    urgent: bool = True


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One handing-over of one message to one consumer. `attempt` is 1-based and counts explicit retries and crashes
    alike.

    `tag` belongs to the driver; `enqueued_at` is Unix ms of the first send; `redrives` how often it came back from
    the dead. `redelivered` says that it was, or may have been, handed to a consumer before, also where that cost no
    attempt; a driver with `Capability.DEDUP` need not tell.
    """

    tag: Any
    queue: str
    id: str
    payload: bytes
    headers: dict[str, str]
    attempt: int
    enqueued_at: int
    redrives: int = 0
    redelivered: bool = False


class Ack(msgspec.Struct, frozen=True):
    """The work is done: the message is gone."""

    delivery: Delivery


class Nack(msgspec.Struct, frozen=True):
    """Try again after `delay_s`. `counts=False` hands it back without costing an attempt (drain, a paused job)."""

    delivery: Delivery
    delay_s: float = 0.0
    counts: bool = True
    error: ErrorRecord | None = None


class Reject(msgspec.Struct, frozen=True):
    """Never again: it becomes a dead letter of its queue, payload and headers unchanged."""

    delivery: Delivery
    reason: str
    error: ErrorRecord | None = None


Settlement: TypeAlias = Ack | Nack | Reject

Carried: TypeAlias = Callable[[Any], object]
"""Changes of another store, called with the driver's own transaction; may be called again after that was rolled back.
What it raises undoes the settlement that carries it."""


class Depth(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one queue, and the age in seconds of the oldest message that is ready (0 when none is)."""

    queue: str
    ready: int
    in_flight: int
    delayed: int
    dead: int
    oldest_age_s: float

    @property
    def total(self) -> int:
        """What scaling looks at: ready, in flight and delayed."""
        return self.ready + self.in_flight + self.delayed


class QueueConsumer(Protocol):
    """One consumer of one queue. Its unsettled deliveries return to the queue, attempt raised, when its process
    dies.
    """

    async def receive(self, limit: int, timeout_s: float | None = None) -> list[Delivery]:
        """Up to `limit` deliveries, at least one; an empty list after `timeout_s` (None waits without end).

        Never more in flight than `max_in_flight`: it waits for room. One caller at a time. Cancelling it loses nothing:
        what was claimed and not returned is handed back without costing an attempt. After the backend restarts it
        resumes by itself.
        """
        ...

    async def settle(
        self,
        settlements: Sequence[Settlement],
        sends: Sequence[OutgoingMessage] = (),
        carry: Sequence[Carried] = (),
    ) -> None:
        """Send `sends` durably, then settle; with `ATOMIC_SETTLE` in one transaction. Returns when durable. Where not
        atomic, retries and dead letters are durable before `sends`, so that what these cause never finds them missing;
        a backend that confirms no acknowledgement may forget one when it dies just then: it comes again, `redelivered`.

        May be called concurrently. All or nothing where atomic. With `CARRY` the changes in `carry` are made in the
        same transaction. Raises `failed_precondition` with reason `delivery_settled` or `delivery_lost` (then nothing
        of the call happened where atomic), `not_found` for a missing queue among the sends, what `carry` raises.
        """
        ...

    async def extend(self, deliveries: Sequence[Delivery], lease_s: float) -> None:
        """Hold them for `lease_s` seconds from now. `unsupported` without `Capability.LEASE`, `failed_precondition`
        when lost.
        """
        ...

    async def aclose(self) -> None:
        """Hand back everything in flight without costing an attempt, wake a blocked `receive` with `Closed`.
        Idempotent, ≤ 10 s.
        """
        ...


class QueueDriver(Protocol):
    """Durable work queues of one namespace. Drivers neither validate, retry, log nor trace: the façade does."""

    capabilities: Capability
    dead_letters: DeadLetterSource

    async def declare(self, specs: Sequence[QueueSpec]) -> None:
        """Create the queues, durable; one that exists takes the new limits and keeps its messages. Idempotent,
        concurrent.
        """
        ...

    async def queues(self) -> list[QueueSpec]:
        """The declared queues, by name."""
        ...

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        """Durable when it returns; the batch is one commit or one confirm window. May be called concurrently.

        Raises `not_found` (reason `queue_not_found`) when one of the queues is missing, `resource_exhausted` at
        `depth_max` or a
        full disk: then none of an atomic batch was sent.
        """
        ...

    def consume(
        self, queue: str, *, max_in_flight: int, lease_s: float | None = None
    ) -> AbstractAsyncContextManager[QueueConsumer]:
        """A consumer. With `lease_s` a delivery that is neither settled nor extended in time goes back, attempt
        raised.
        """
        ...

    async def depth(self, queue: str) -> Depth:
        """Counts now. Raises `not_found`."""
        ...

    async def aclose(self) -> None:
        """Close what this driver opened. Idempotent, safe while calls are blocked, ≤ 10 s."""
        ...
