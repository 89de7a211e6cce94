"""The port of the bus: what a driver must do, and the values that cross it.

A driver carries bytes on subjects in two ways. Transient: `publish`, `request`, `subscribe`, at most once, to whoever
listens now. Durable: `append` and `consume`, at least once, to every consumer that was declared, whether it is there or
not; and `last`, what was appended last on a subject. What the bytes say is `wire`, what subjects there are `subjects`.

The subjects of the port are those of one plane; a driver on a shared server puts `subjects.namespace_token` before
them. The façade has checked subjects, sizes and numbers. Drivers neither validate, retry, log nor trace.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

import msgspec

from groundplane.core.clock import Clock
from groundplane.core.dead_letters import DeadLetterSource
from groundplane.core.errors import ErrorRecord

PAYLOAD_BYTES_MAX = 1024 * 1024
DEDUP_WINDOW_S = 120.0
LEASE_S = 30.0
EVENTS_KEPT_S = 7 * 86_400.0
RESULTS_KEPT_S = 86_400.0
STARVED_S = 20.0
"""How long a message may wait behind more urgent ones before it takes its turn before them."""


class Capability(enum.Flag):
    """What a driver declares; the suite tests what is there and asserts the refusal (`unsupported`) of what is not."""

    NONE = 0
    PRIORITY = enum.auto()
    """Consumers of commands hand out the more urgent first."""
    REPLAY = enum.auto()
    """A new consumer of events can begin with those that are kept."""


class Priority(enum.IntEnum):
    """How urgent a command is."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the backend takes at most. `payload_bytes_max` counts a message's payload and headers."""

    payload_bytes_max: int = PAYLOAD_BYTES_MAX


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bytes on a subject. `id` names it: repeats of an `append` within two minutes are dropped by it. `reply_to` is the
    subject of an answer, of the driver's own making, set on what `request` sent. `headers` go beside the payload;
    names and values are printable ASCII.
    """

    subject: str
    payload: bytes
    id: str = ""
    headers: dict[str, str] = {}
    reply_to: str = ""
    priority: Priority = Priority.NORMAL


class ConsumerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A durable consumer: it gets what is appended on `pattern` once it is declared, also while nobody consumes.

    `pattern` lies in the store `events` or `commands` (`subjects.store_of`). `name` is a name of the bus, unique among
    the consumers of the plane; whoever consumes under the same name shares the work, and must give the same pattern
    (`failed_precondition`, `subscription_differs`). A new one of events begins with what is appended from then on, with
    `replay` with what is kept; one of commands with all that is not done, and no two of commands may overlap
    (`subscription_differs`). It is deleted, with what it has not got yet, after nobody consumed for `expires_s` (None:
    never). A delivery that is neither settled nor extended within `lease_s` is handed out again.
    """

    name: str
    pattern: str
    replay: bool = False
    expires_s: float | None = None
    lease_s: float = LEASE_S
    max_in_flight: int = 64


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One handing-over of a durable message to a consumer. `attempt` is 1-based and counts every one before, nacks and
    crashes alike, save those that did not count. `tag` belongs to the driver. `stored_at` is Unix ms by the clock of
    the store; `redrives` how often it came back from the dead.
    """

    tag: Any
    message: Message
    attempt: int
    stored_at: int
    redrives: int = 0


class Ack(msgspec.Struct, frozen=True):
    """The work is done: this consumer never gets it again."""

    delivery: Delivery


class Nack(msgspec.Struct, frozen=True):
    """Hand it out again, not before `delay_s`. `counts=False`: this handing-over cost no attempt, where the backend
    can tell; never one more than without it.
    """

    delivery: Delivery
    delay_s: float = 0.0
    counts: bool = True


class Reject(msgspec.Struct, frozen=True):
    """Never again: it becomes a dead letter of `queue` = the consumer's name, payload and headers unchanged, durable
    before it is gone from the consumer. Redriven, it comes back to that consumer alone.
    """

    delivery: Delivery
    reason: str
    error: ErrorRecord | None = None


Settlement: TypeAlias = Ack | Nack | Reject


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """How far one durable consumer is behind: `waiting` were not handed out yet, or again; `in_flight` are out."""

    consumer: str
    pattern: str
    waiting: int
    in_flight: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How the driver is now. `problem` says why it is not ready, and is empty when it is. `connections` are open,
    `reconnects` and `dropped` (transient messages that a slow subscriber lost) count since opening.
    """

    ready: bool
    problem: str = ""
    connections: int = 0
    reconnects: int = 0
    dropped: int = 0


Deliver: TypeAlias = Callable[[Message], None]
"""Called in the event loop for each transient message. Must not block, wait, or raise."""


class BusSubscription(Protocol):
    """A transient subscription."""

    async def aclose(self) -> None:
        """No message is delivered once this has returned. Idempotent, ≤ 10 s."""
        ...


class BusConsumer(Protocol):
    """One of those that consume under one name. What it holds unsettled goes to the others when its process dies."""

    async def receive(self, limit: int, timeout_s: float | None = None) -> list[Delivery]:
        """Up to `limit` deliveries, at least one; an empty list after `timeout_s` (None waits without end).

        In the order of appending where nothing is handed out again; the more urgent first with `PRIORITY`, and every
        other second one of each priority whose first has waited for `STARVED_S`. Never more in flight than
        `max_in_flight`: it waits for room. One caller at a time. Cancelling it loses nothing and costs no attempt.
        After the backend was away it goes on by itself.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Durable when it returns. May be called concurrently. A delivery that is lost or settled already is no error:
        at least once is all that is promised.
        """
        ...

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Hold them, and perhaps what was received together with them, for another `lease_s` from now.
        `failed_precondition` (`delivery_lost`) where one is no longer held, as far as the backend tells.
        """
        ...

    async def aclose(self) -> None:
        """Hand back what is unsettled, without costing an attempt where the backend can tell; wake a blocked `receive`
        with `Closed`. The durable consumer stays. Idempotent, ≤ 10 s.
        """
        ...


class BusDriver(Protocol):
    """Messages of one plane. Everything may be called concurrently in the loop that opened it.

    `clock` is that of the store, as far as it is known here: deadlines that travel are by it, on every host.
    """

    capabilities: Capability
    limits: Limits
    clock: Clock
    dead_letters: DeadLetterSource

    async def publish(self, message: Message) -> None:
        """Send to whoever subscribes now, at most once; nobody is no error. Returns when it is handed to the
        transport, not when it arrived. `unavailable` at once while disconnected: nothing is sent later.
        """
        ...

    async def request(self, message: Message, timeout_s: float) -> Message:
        """Send with a `reply_to` of its own and return the first answer. `unavailable` (`no_responder`) at once where
        nobody subscribes, `deadline_exceeded` after `timeout_s`, `unavailable` when the connection is lost (the
        outcome is unknown then, and `details["sent"]` is True).
        """
        ...

    async def subscribe(self, pattern: str, deliver: Deliver, *, group: str = "") -> BusSubscription:
        """Hand each transient and each appended message on `pattern` to `deliver`; of those that subscribe with the
        same `group` and pattern, to one of them, evenly. In effect when it returns; kept over reconnects.
        """
        ...

    async def append(self, messages: Sequence[Message]) -> None:
        """Durable when it returns; transient subscribers get them as well. In order. An `id` that was appended within
        `DEDUP_WINDOW_S` is dropped, no error.

        Not atomic: after an error some may be stored, and the same messages may be appended again.
        `resource_exhausted` where the store is full, `unavailable` where it does not confirm.
        """
        ...

    def consume(self, spec: ConsumerSpec) -> AbstractAsyncContextManager[BusConsumer]:
        """Declare the durable consumer unless it is there, and take part in it."""
        ...

    async def last(self, subjects: Sequence[str]) -> dict[str, Message]:
        """What was appended last on each of these subjects of the store `results`; those without are left out."""
        ...

    async def status(self) -> tuple[Status, list[Lag]]:
        """How the driver is, and the durable consumers of the plane, by name. Asks the backend, within 2 s; says so in
        `problem` where it does not answer, with the consumers it last knew.
        """
        ...

    async def aclose(self) -> None:
        """Close what this driver opened: consumers, subscriptions, connections; blocked calls end with `Closed`.
        Idempotent, ≤ 10 s.
        """
        ...
