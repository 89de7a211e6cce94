"""Events: published durably, handled at least once by each group or by each instance."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from groundplane.bus import cloudevents, wire
from groundplane.bus.handlers import EventContext, Handler, check_event_handler, context_of, run
from groundplane.bus.port import LEASE_S, Ack, ConsumerSpec, Delivery, Message, Nack, Reject, Settlement
from groundplane.bus.sending import (
    Sender,
    check_backoff,
    check_count,
    check_headers,
    check_lease,
    check_timeout,
    error_record,
)
from groundplane.bus.subjects import check_pattern, check_token, event_subject
from groundplane.bus.timeouts import Timeout
from groundplane.bus.working import Worker
from groundplane.core.codec import Codec
from groundplane.core.errors import DeadlineExceeded, ErrorRecord, GroundplaneError, InvalidArgument
from groundplane.core.ids import new_id
from groundplane.core.retry import RetryPolicy
from groundplane.core.trace_context import carried
from groundplane.telemetry import trace_names as names
from groundplane.telemetry import traces

Mode = Literal["compete", "broadcast"]
ATTEMPTS_MAX = 5
BACKOFF = RetryPolicy(attempts=ATTEMPTS_MAX, base_s=1.0, factor=2.0, cap_s=60.0, jitter=False)
HANDLER_TIMEOUT_S = 300.0
PREFETCH = 64
BROADCAST_EXPIRES_S = 300.0
GROUP_MAX = 48
_NEVER_AGAIN = frozenset({"invalid_argument", "unsupported", "permission_denied"})


class ReceivedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event, as its handler gets it. `attempt` is 1-based; `stored_at` is Unix ms by the clock of the store."""

    id: str
    domain: str
    type: str
    payload: Any
    version: str
    subject: str
    attempt: int
    stored_at: int
    timestamp: str
    source: str
    correlation_id: str
    trace_id: str
    headers: dict[str, str]
    redrives: int = 0

    @property
    def major(self) -> int:
        """The major version of the payload's shape."""
        return major_of(self.version)

    def cloudevent(self) -> dict[str, Any]:
        """It as CloudEvents 1.0 has it."""
        event = wire.Event(
            message_id=self.id, timestamp=self.timestamp, source=self.source, correlation_id=self.correlation_id,
            headers=self.headers, domain=self.domain, event_type=self.type, payload=self.payload, version=self.version,
        )  # fmt: skip
        return cloudevents.to_cloudevent(event)


class OutgoingEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event to publish with others. Repeats of an `id` within two minutes are dropped; without, it gets one."""

    domain: str
    type: str
    payload: Any = None
    version: str = "1.0"
    id: str = ""
    correlation_id: str = ""
    headers: dict[str, str] = {}


class SubscriptionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a subscription handles: by groups or each instance, how many at once, how often, how long."""

    group: str
    mode: Mode = "compete"
    major: int | None = None
    concurrency: int = 1
    attempts_max: int = ATTEMPTS_MAX
    backoff: RetryPolicy = BACKOFF
    timeout_s: float = HANDLER_TIMEOUT_S
    lease_s: float = LEASE_S
    prefetch: int = PREFETCH
    replay: bool = False


def check_options(options: SubscriptionOptions) -> SubscriptionOptions:
    """`invalid_argument` names the first field that is out of range."""
    check_token("group", options.group)
    if len(options.group) > GROUP_MAX:
        raise InvalidArgument(f"group: {options.group!r} must have at most {GROUP_MAX} characters")
    if options.mode not in get_args(Mode):
        raise InvalidArgument(f"mode: {options.mode!r} is not one of {', '.join(get_args(Mode))}")
    if options.major is not None:
        check_count("major", options.major, 0, 1_000_000)
    check_count("concurrency", options.concurrency, 1, 10_000)
    check_count("attempts_max", options.attempts_max, 1, 1000)
    check_count("prefetch", options.prefetch, 1, 10_000)
    check_backoff("backoff", options.backoff)
    check_timeout("timeout_s", options.timeout_s)
    check_lease("lease_s", options.lease_s)
    return options


def make_message(
    sender: Sender, event: OutgoingEvent, head: dict[str, Any], codec: Codec | None, *, as_cloudevent: bool
) -> Message:
    """The message of an event, checked. `head` is that of all that are published together."""
    if not isinstance(event, OutgoingEvent):
        raise InvalidArgument(f"outgoing: {event!r} is no OutgoingEvent")
    subject = event_subject(event.domain, event.type)
    major_of(event.version)
    if event.id != "":
        _check_id(event.id)
    if not isinstance(event.correlation_id, str):
        raise InvalidArgument(f"correlation_id: {event.correlation_id!r} must be a text")
    if event.headers:
        head = {**head, "headers": {**check_headers(event.headers), **head["headers"]}}
    content = wire.Event(
        **head, message_id=event.id or new_id(), correlation_id=event.correlation_id, domain=event.domain,
        event_type=event.type, payload=event.payload, version=event.version,
    )  # fmt: skip
    if as_cloudevent:
        cloudevents.check_extensions(event.headers)
        media = {cloudevents.CONTENT_TYPE: cloudevents.MEDIA_TYPE}
        return sender.raw(subject, cloudevents.write(content), content.message_id, headers=media)
    return sender.message(subject, content, codec)


def _check_id(value: object) -> None:
    if not isinstance(value, str) or len(value) > 255 or not value.isprintable() or value != value.strip():
        raise InvalidArgument(f"id: {value!r} must have 1 to 255 printable characters, no space at its ends")


def major_of(version: str) -> int:
    """The major part of `major.minor`."""
    if not isinstance(version, str):
        raise InvalidArgument(f"version: {version!r} is no text; write it as '1.0'")
    return _major_of(version)


@functools.lru_cache(maxsize=256)
def _major_of(version: str) -> int:
    major, dot, minor = version.partition(".")
    if not (major.isdecimal() and (not dot or minor.isdecimal()) and len(version) <= 32):
        raise InvalidArgument(f"version: {version!r} is not major.minor, such as '1.0'")
    return int(major)


def read_event(delivery: Delivery) -> ReceivedEvent:
    """The event of a delivery; `invalid_argument` (`msg_parsing_error`) where it is none."""
    message = delivery.message
    headers = message.headers
    media = next((v for k, v in headers.items() if k.lower() == cloudevents.CONTENT_TYPE), "") if headers else ""
    if media.lower().startswith(cloudevents.MEDIA_TYPE):
        event = cloudevents.read(message.payload)
    else:
        event, _ = wire.read(message.payload, wire.Event)
    major_of(event.version)
    domain, event_type = event.domain, event.event_type
    if not (domain and event_type):
        _, first, rest = (*message.subject.split(".", 2), "", "")[:3]  # of a foreign peer it may have less
        domain, event_type = domain or first, event_type or rest
    return ReceivedEvent(
        id=event.message_id or message.id,
        domain=domain,
        type=event_type,
        payload=event.payload,
        version=event.version,
        subject=message.subject,
        attempt=delivery.attempt,
        stored_at=delivery.stored_at,
        timestamp=event.timestamp,
        source=event.source,
        correlation_id=event.correlation_id,
        trace_id=event.trace_id,
        headers=event.headers,
        redrives=delivery.redrives,
    )


class Subscription:
    """A handler of events. Make it with `Bus.subscribe`."""

    def __init__(self, sender: Sender, pattern: str, handler: Handler, options: SubscriptionOptions) -> None:
        check_pattern("pattern", pattern)
        subject = check_pattern("pattern", f"events.{pattern}")
        self.pattern = pattern
        self.options = check_options(options)
        check_event_handler(handler)
        self._sender = sender
        self._handler = handler
        self._asynchronous = asyncio.iscoroutinefunction(handler) or asyncio.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004
        )
        self._context = context_of(handler)
        broadcast = options.mode == "broadcast"
        self.spec = ConsumerSpec(
            name=consumer_name(options.group, subject, sender.instance if broadcast else ""),
            pattern=subject,
            replay=options.replay,
            expires_s=BROADCAST_EXPIRES_S if broadcast else None,
            lease_s=options.lease_s,
            max_in_flight=max(options.prefetch, options.concurrency),
        )
        self._worker = Worker(sender, self.spec, self._handle, concurrency=options.concurrency)
        self._timeouts: list[Timeout] = []

    def __repr__(self) -> str:
        return f"<Subscription {self.pattern!r} of {self.options.group!r}, {self.options.mode}>"

    @property
    def failure(self) -> GroundplaneError | None:
        """Why it does not get events now; None where it does."""
        return self._worker.failure

    async def start(self) -> None:
        """From now on nothing is missed."""
        await self._worker.start()

    async def aclose(self) -> None:
        """Handle no more here; the durable subscription stays. Idempotent, ≤ 10 s."""
        await self._worker.aclose()
        for timeout in self._timeouts:
            timeout.close()

    async def _handle(self, delivery: Delivery) -> Settlement:
        began = time.monotonic()
        settlement, outcome = await self._decide(delivery)
        self._sender.counters.ended("events", outcome, time.monotonic() - began)
        return settlement

    async def _decide(self, delivery: Delivery) -> tuple[Settlement, str]:
        if delivery.attempt > self.options.attempts_max:
            return Reject(delivery, "attempts_exhausted"), "dead"
        try:
            event = read_event(delivery)
        except InvalidArgument as error:
            return Reject(delivery, "msg_parsing_error", error.to_record()), "dead"
        if self.options.major is not None and event.major != self.options.major:
            return Ack(delivery), "skipped"
        failure = await self._traced(event, delivery.message.headers)
        if failure is None:
            return Ack(delivery), "ok"
        if failure.code in _NEVER_AGAIN and not failure.retryable:
            return Reject(delivery, "non_retryable", failure), "dead"
        if delivery.attempt >= self.options.attempts_max:
            return Reject(delivery, "max_retries_exhausted", failure), "dead"
        return Nack(delivery, self.options.backoff.delay_s(delivery.attempt)), "retried"

    async def _traced(self, event: ReceivedEvent, headers: Mapping[str, str]) -> ErrorRecord | None:
        if not traces.on():
            traces.carry_on(event.headers, headers)
            return await self._call(event)
        parent = carried(event.headers) or carried(headers)
        with traces.start_under(parent, names.on_queue(names.PROCESS, event.subject), names.CONSUMER) as span:
            failure = await self._call(event)
            if failure is not None:
                span.fail(failure.reason or failure.code, failure.type)
            return failure

    async def _call(self, event: ReceivedEvent) -> ErrorRecord | None:
        timeout = self._timeouts.pop() if self._timeouts else Timeout(self.options.timeout_s)
        try:
            with timeout:
                if self._context is not None:
                    asked = {self._context: EventContext(self._sender.bus, self.spec.name, event.id)}
                    await run(self._handler, event, asynchronous=self._asynchronous, keywords=asked)
                elif self._asynchronous:
                    await self._handler(event)
                else:
                    await run(self._handler, event, asynchronous=False)
        except TimeoutError as raised:
            if not timeout.expired:
                return error_record(raised)
            late = DeadlineExceeded(f"{self.pattern}: the handler took longer than {self.options.timeout_s:g} s")
            return late.to_record()
        except Exception as raised:  # noqa: BLE001  whatever a handler raises is counted, retried, and kept
            return error_record(raised)
        finally:
            self._timeouts.append(timeout)
        return None


def consumer_name(group: str, subject: str, instance: str) -> str:
    """The durable consumer of a group and pattern (and instance, where each gets all): the group, and a digest."""
    digest = hashlib.blake2b(f"{subject}\0{instance}".encode(), digest_size=6).hexdigest()
    return f"{group}-{digest}"
