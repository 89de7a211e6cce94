"""The façade: what users hold. It validates, retries, bounds, counts, traces and closes; a driver carries."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from groundplane.bus import commands, events, serving, wire
from groundplane.bus.calling import Calls, JobStarter
from groundplane.bus.commands import CommandWorker, Sent, Tracked, check_priority, read_end, result_of
from groundplane.bus.drivers import open_driver
from groundplane.bus.events import Mode, OutgoingEvent, Subscription, SubscriptionOptions, make_message
from groundplane.bus.handlers import Bound, Handler
from groundplane.bus.port import (
    LEASE_S,
    BusDriver,
    BusSubscription,
    Capability,
    Deliver,
    Lag,
    Limits,
    Message,
    Priority,
    Status,
)
from groundplane.bus.presence import Select
from groundplane.bus.rpc import Caller
from groundplane.bus.sending import (
    RETRY,
    Sender,
    check_arguments,
    check_backoff,
    check_count,
    check_headers,
    check_lease,
    check_timeout,
)
from groundplane.bus.serving import Server
from groundplane.bus.statistics import Statistics
from groundplane.bus.subjects import check_pattern, check_service, check_token
from groundplane.core.codec import Codec
from groundplane.core.dead_letters import DeadLetterSource
from groundplane.core.errors import InvalidArgument, NotFound, Unsupported
from groundplane.core.ids import new_id
from groundplane.core.names import check_name
from groundplane.core.retry import RetryPolicy
from groundplane.telemetry import trace_names as names
from groundplane.telemetry import traces
from groundplane.telemetry.calls import measured
from groundplane.telemetry.logs import get_logger

T = TypeVar("T")
_log = get_logger("bus")

CLOSE_S = 10.0
PARTS_S = 6.0
"""How long servers, subscriptions and workers may take of it."""
EVENTS_AT_ONCE_MAX = 10_000


class _Part(Protocol):
    async def start(self) -> None: ...
    async def aclose(self) -> None: ...


P = TypeVar("P", bound=_Part)


class Bus:
    """Requests, events and commands of one plane.

    Everything may be called concurrently in the loop that opened it. What is published or sent is durable when the call
    returns, and repeated up to three times where an error may pass; its id keeps it from being doubled. Requests are
    never repeated. After `aclose` every call raises `Closed`.
    """

    def __init__(
        self,
        driver: BusDriver,
        *,
        name: str = "groundplane",
        instance: str | None = None,
        codec: Codec = "msgpack",
        retry: RetryPolicy = RETRY,
    ) -> None:
        """Put the façade on a driver that is open already; closing the façade closes it. `name` is who sends, and the
        default group of subscriptions; `instance` tells the processes of one name apart.
        """
        check_token("name", name)
        if codec not in ("msgpack", "json"):
            raise InvalidArgument(f"codec: {codec!r} is not 'msgpack' or 'json'")
        self.driver = driver
        self.job_starter: JobStarter | None = None
        """What starts the jobs that handlers ask for."""
        self.name = name
        self.instance = check_token("instance", instance or f"i-{new_id()[-12:]}")
        self._sender = Sender(driver, source=name, instance=self.instance, codec=codec, retry=retry)
        self._sender.bus = self
        self._caller = Caller(self._sender)
        self._parts: dict[int, _Part] = {}
        self._connections = (0, 0)
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str = "embedded://",
        *,
        namespace: str = "default",
        state: str | os.PathLike[str] = ".groundplane",
        name: str = "groundplane",
        instance: str | None = None,
        codec: Codec = "msgpack",
        inline: bool = False,
        upgrade: bool = False,
    ) -> AsyncIterator[Bus]:
        """Open the bus behind `url`.

        `state` is the folder of the embedded driver when the URL names none; `inline` runs its database in the loop,
        for processes that do little else; `upgrade` brings an older schema to the present one. `invalid_argument` for
        an unknown scheme or parameter, else the errors of the driver.
        """
        check_name("namespace", namespace)
        check_token("name", name)
        async with AsyncExitStack() as stack:
            options = {"namespace": namespace, "state": Path(state), "inline": inline, "upgrade": upgrade}
            driver = await stack.enter_async_context(open_driver(url, **options))
            bus = cls(driver, name=name, instance=instance, codec=codec)
            stack.push_async_callback(bus.aclose)
            yield bus

    def __repr__(self) -> str:
        return f"<Bus {self.name!r} on {self.driver!r}, {'closed' if self._closing else f'{len(self._parts)} parts'}>"

    @property
    def capabilities(self) -> Capability:
        """What the driver can do."""
        return self.driver.capabilities

    @property
    def limits(self) -> Limits:
        """What the backend takes at most."""
        return self.driver.limits

    @property
    def dead_letters(self) -> DeadLetterSource:
        """What was not tried again: events and commands, with their bytes."""
        return self.driver.dead_letters

    def request(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = wire.RPC_TIMEOUT_S,
        select: Select = "round_robin",
        key: str | None = None,
        instance: str | None = None,
        headers: Mapping[str, str] | None = None,
        codec: Codec | None = None,
        result_type: Any = Any,
    ) -> Coroutine[Any, Any, Any]:
        """Call a method of one instance of a service and return its result.

        `select` chooses the instance: in turn, at random, or `sticky` by `key`; `instance` names one. The timeout
        travels: the handler is cancelled when it has passed, or when this call is cancelled, and requests that it makes
        wait no longer. Inside a handler the time left there is the most. Never repeated. Raises the handler's error,
        `unavailable` (`no_responder`) at once where nobody serves the method, `deadline_exceeded`.
        """
        asked = self._caller.request(
            service, method, params, timeout_s, (select, key, instance), headers, codec, result_type
        )
        return traces.within(f"{service}.{method}", names.CLIENT, asked) if traces.on() else asked

    @asynccontextmanager
    async def serve(
        self,
        service: str,
        handlers: Mapping[str, Handler],
        *,
        instance: str | None = None,
        concurrency: int = serving.CONCURRENCY,
    ) -> AsyncIterator[Server]:
        """Be an instance of a service: `handlers` by method, at most `concurrency` calls at once.

        Up to 1,024 more calls wait; then `resource_exhausted` (`too_many_calls`). Leaving the block lets calls end for
        5 s.
        """
        check_token("service", service)
        check_count("concurrency", concurrency, 1, 100_000)
        bound = _bound("method", handlers)
        chosen = check_token("instance", instance or self.instance)
        async with self._running(Server(self._sender, service, bound, chosen, concurrency)) as server:
            yield server

    async def publish(
        self,
        domain: str,
        event_type: str,
        payload: Any = None,
        *,
        version: str = "1.0",
        event_id: str = "",
        correlation_id: str = "",
        headers: Mapping[str, str] | None = None,
        codec: Codec | None = None,
        as_cloudevent: bool = False,
    ) -> str:
        """Publish an event; durable when it returns. Its id: with `event_id`, repeats within two minutes are dropped.

        `as_cloudevent` writes it as CloudEvents 1.0 in JSON.
        """
        event = OutgoingEvent(
            domain=domain, type=event_type, payload=payload, version=version, id=event_id,
            correlation_id=correlation_id, headers=check_headers(headers),
        )  # fmt: skip
        return (await self.publish_many([event], codec=codec, as_cloudevent=as_cloudevent))[0]

    @measured("bus")
    async def publish_many(
        self, outgoing: Sequence[OutgoingEvent], *, codec: Codec | None = None, as_cloudevent: bool = False
    ) -> list[str]:
        """Publish events in this order; durable when it returns. Their ids. After an error some may be published;
        publish the same ids again.
        """
        self._sender.check_open()
        if not isinstance(outgoing, Sequence):
            raise InvalidArgument(f"outgoing: {outgoing!r} must be a list of OutgoingEvent")
        if len(outgoing) > EVENTS_AT_ONCE_MAX:
            raise InvalidArgument(f"outgoing: {len(outgoing)!r} events at once; publish at most {EVENTS_AT_ONCE_MAX}")
        head = self._sender.head()
        messages = [make_message(self._sender, one, head, codec, as_cloudevent=as_cloudevent) for one in outgoing]
        if messages:
            await self._append(messages)
            self._sender.counters.add("published", len(messages))
        return [one.id for one in messages]

    @asynccontextmanager
    async def subscribe(
        self,
        pattern: str,
        handler: Handler,
        *,
        group: str | None = None,
        mode: Mode = "compete",
        major: int | None = None,
        concurrency: int = 1,
        attempts_max: int = events.ATTEMPTS_MAX,
        backoff: RetryPolicy = events.BACKOFF,
        timeout_s: float = events.HANDLER_TIMEOUT_S,
        lease_s: float = LEASE_S,
        prefetch: int = events.PREFETCH,
        replay: bool = False,
    ) -> AsyncIterator[Subscription]:
        """Handle events on a pattern of `<domain>.<type>`, such as `orders.*`: `handler(event)`, a `ReceivedEvent`.

        The subscription is durable: what is published while nobody of the group is there comes later. `compete`: once
        for each `group` (by default this bus's name); `broadcast`: for each instance, forgotten five minutes after it
        left. In order with `concurrency=1` and no retries. A handler that raises gets the event again after `backoff`,
        `attempts_max` times in all; then it is a dead letter. `major` takes events of that major version alone.
        `replay` begins a new subscription with the events that are kept.
        """
        options = SubscriptionOptions(
            group=self.name if group is None else group, mode=mode, major=major, concurrency=concurrency,
            attempts_max=attempts_max, backoff=backoff, timeout_s=timeout_s, lease_s=lease_s, prefetch=prefetch,
            replay=replay,
        )  # fmt: skip
        if replay:
            self._require(Capability.REPLAY, "replay")
        async with self._running(Subscription(self._sender, pattern, handler, options)) as subscription:
            yield subscription

    async def send(
        self,
        service: str,
        command: str,
        payload: Mapping[str, Any] | None = None,
        *,
        priority: wire.PriorityName = "normal",
        max_retries: int = 3,
        timeout_s: float = wire.COMMAND_TIMEOUT_S,
        command_id: str = "",
        headers: Mapping[str, str] | None = None,
        codec: Codec | None = None,
    ) -> Sent:
        """Send a command; durable when it returns, and done whether anybody waits or not. `result` reads its end.

        A handler that raises is tried again up to `max_retries` times; all of it within `timeout_s`. A `command_id` of
        your own drops repeats within two minutes.
        """
        return await self._send(
            service, command, payload, priority, max_retries, timeout_s, command_id or new_id(), headers, codec
        )

    @asynccontextmanager
    async def track(
        self,
        service: str,
        command: str,
        payload: Mapping[str, Any] | None = None,
        *,
        priority: wire.PriorityName = "normal",
        max_retries: int = 3,
        timeout_s: float = wire.COMMAND_TIMEOUT_S,
        command_id: str = "",
        headers: Mapping[str, str] | None = None,
        codec: Codec | None = None,
    ) -> AsyncIterator[Tracked]:
        """Send a command as `send` does, and follow it: its progress, its end. Leaving the block does not cancel it."""
        chosen = check_token("command_id", command_id or new_id())
        check_timeout("timeout_s", timeout_s)
        sent = Sent(command_id=chosen, service=service, command=command, accepted_at="")
        tracked = Tracked(self._sender, sent, timeout_s)
        try:
            await tracked.follow()
            tracked.sent = await self._send(
                service, command, payload, priority, max_retries, timeout_s, chosen, headers, codec
            )
            yield tracked
        finally:
            await tracked.aclose()

    async def result(self, command_id: str) -> Any:
        """What the handler of a command returned; raises its error. `not_found` while it has not ended, and a day after
        it has.
        """
        end = await self.command_end(command_id)
        if end is None:
            raise NotFound(
                f"command_id: no end is known of {command_id!r}; it is not done yet, or its result is no longer kept"
            )
        return result_of(end)

    @measured("bus")
    async def command_end(self, command_id: str) -> wire.CommandCallback | None:
        """How a command ended; None while it has not, and a day after it has."""
        return await read_end(self._sender, check_token("command_id", command_id))

    @measured("bus")
    async def cancel(self, command_id: str, reason: str = "") -> None:
        """Cancel a command: one that waits does not begin, the handler of one that runs is cancelled. One that has
        ended stays as it is.
        """
        check_token("command_id", command_id)
        if not isinstance(reason, str):
            raise InvalidArgument(f"reason: {reason!r} must be a text")
        cancel = wire.CommandCancel(
            **self._sender.head(), message_id=new_id(), correlation_id=command_id, reason=reason[:1000]
        )
        await self._append([self._sender.message(f"commands.cancel.{command_id}", cancel)])

    @asynccontextmanager
    async def handle(
        self,
        service: str,
        handlers: Mapping[str, Handler],
        *,
        concurrency: int = commands.CONCURRENCY,
        backoff: RetryPolicy = commands.BACKOFF,
        lease_s: float = LEASE_S,
    ) -> AsyncIterator[CommandWorker]:
        """Handle the commands of a service: `handlers` by command, at most `concurrency` at once, urgent ones first.

        Every instance of the service handles the same commands. A lease is extended while a handler runs, so that no
        command runs twice at once; when this process dies, another begins it anew.
        """
        check_service("service", service)
        check_count("concurrency", concurrency, 1, 10_000)
        check_lease("lease_s", lease_s)
        check_backoff("backoff", backoff)
        bound = _bound("command", handlers)
        worker = CommandWorker(self._sender, service, bound, concurrency=concurrency, backoff=backoff, lease_s=lease_s)
        async with self._running(worker) as running:
            yield running

    def calls(self, scope: str, until: float | None = None) -> Calls:
        """The bus as one piece of work sees it, which is named by `scope`: repeated, it sends messages of the same ids.
        All that it asks ends at `until`, by the loop's clock.
        """
        return Calls(self, scope, until)

    @asynccontextmanager
    async def listen(self, pattern: str, take: Deliver) -> AsyncIterator[BusSubscription]:
        """Look on: hand every message on a pattern of whole subjects (`events.orders.>`) to `take`, at most once and
        only while the block lasts. `take` is called in the event loop and must neither wait nor raise.
        """
        self._sender.check_open()
        subscription = await self.driver.subscribe(check_pattern("pattern", pattern), partial(self._look_on, take))
        try:
            yield subscription
        finally:
            await subscription.aclose()

    async def status(self) -> tuple[Status, list[Lag]]:
        """How the connection is, and how far each durable subscription is behind. Not ready either while a subscription
        or worker of this bus gets nothing.
        """
        self._sender.check_open()
        status, lags = await self.driver.status()
        failures = [failure for part in self._parts.values() if (failure := getattr(part, "failure", None))]
        if status.ready and failures:
            status = msgspec.structs.replace(status, ready=False, problem=str(failures[0]))
        self._connections = (status.connections, status.reconnects)
        return status, lags

    def statistics(self) -> Statistics:
        """Counts since opening; connections as the last `status` saw them."""
        connections, reconnects = self._connections
        return self._sender.counters.read(connections=connections, reconnects=reconnects)

    async def aclose(self) -> None:
        """End what runs on it within its grace, then close the driver. Idempotent, ≤ 10 s."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="groundplane-bus-facade-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        until = asyncio.get_running_loop().time() + CLOSE_S
        parts = [asyncio.ensure_future(part.aclose()) for part in self._parts.values()]
        self._parts.clear()
        try:
            if parts:
                await asyncio.wait(parts, timeout=PARTS_S)
            for part in parts:
                part.cancel()  # those that have not ended lose their connection below
            ended = await asyncio.gather(*parts, return_exceptions=True)
            await self._caller.aclose()
        finally:
            self._sender.stopping.set()
            async with asyncio.timeout_at(until):
                await self.driver.aclose()
        for failure in ended:
            if isinstance(failure, Exception):
                raise failure

    def _look_on(self, take: Deliver, message: Message) -> None:
        """What a listener raises is its own: neither who publishes nor the connection is to feel it."""
        try:
            take(message)
        except Exception as error:  # noqa: BLE001  it is logged
            _log.warning("bus_listener_failed", subject=message.subject, error=repr(error))

    @asynccontextmanager
    async def _running(self, part: P) -> AsyncIterator[P]:
        self._sender.check_open()
        self._parts[id(part)] = part
        try:
            await part.start()
            yield part
        finally:
            self._parts.pop(id(part), None)
            await part.aclose()

    @measured("bus")
    async def _send(
        self,
        service: str,
        command: str,
        payload: Mapping[str, Any] | None,
        priority: wire.PriorityName,
        max_retries: int,
        timeout_s: float,
        command_id: str,
        headers: Mapping[str, str] | None,
        codec: Codec | None,
    ) -> Sent:
        self._sender.check_open()
        check_service("service", service)
        check_token("command", command)
        check_token("command_id", command_id)
        check_count("max_retries", max_retries, 0, 1000)
        timeout_s = check_timeout("timeout_s", timeout_s)
        urgency = check_priority(priority)
        if urgency is not Priority.NORMAL:
            self._require(Capability.PRIORITY, "priority")
        content = wire.Command(
            **self._sender.head(check_headers(headers)), message_id=command_id, target=service, command=command,
            payload=check_arguments("payload", payload), priority=priority, max_retries=max_retries, timeout=timeout_s,
            deadline_at=self.driver.clock.now_ms() + int(timeout_s * 1000),
        )  # fmt: skip
        await self._append([self._sender.message(f"commands.{service}.{command}", content, codec, priority=urgency)])
        self._sender.counters.add("sent")
        return Sent(command_id=command_id, service=service, command=command, accepted_at=content.timestamp)

    async def _append(self, messages: list[Message]) -> None:
        subject = messages[0].subject
        with traces.start(names.on_queue(names.SEND, subject), names.PRODUCER):
            await self._sender.append(messages)

    def _require(self, capability: Capability, field: str) -> None:
        if capability not in self.driver.capabilities:
            raise Unsupported(
                f"{field}: {type(self.driver).__name__!r} has no {capability.name}; leave it out",
                details={"capability": capability.name},
            )


def _bound(field: str, handlers: object) -> dict[str, Bound]:
    if not isinstance(handlers, Mapping) or not handlers:
        raise InvalidArgument(f"handlers: {handlers!r} must be a map of functions by name, at least one")
    return {check_token(field, name): Bound(f"handlers[{name!r}]", one) for name, one in handlers.items()}
