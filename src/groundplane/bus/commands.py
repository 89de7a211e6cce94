"""Commands: durable, to one handler; tracked by whoever sent them, and read again by their id."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any, get_args

import msgspec

from groundplane.bus import wire
from groundplane.bus.handlers import Bound, CommandContext
from groundplane.bus.port import (
    Ack,
    BusSubscription,
    ConsumerSpec,
    Delivery,
    Message,
    Nack,
    Priority,
    Reject,
    Settlement,
)
from groundplane.bus.sending import Sender, bare, check_timeout, error_record, unsendable
from groundplane.bus.serving import SKEW_S
from groundplane.bus.subjects import check_token
from groundplane.bus.working import Worker
from groundplane.core.codec import Codec
from groundplane.core.errors import (
    DeadlineExceeded,
    ErrorRecord,
    FailedPrecondition,
    GroundplaneError,
    InvalidArgument,
    NotFound,
    from_record,
)
from groundplane.core.ids import new_id
from groundplane.core.retry import RetryPolicy
from groundplane.core.trace_context import carried
from groundplane.telemetry import trace_names as names
from groundplane.telemetry import traces

BACKOFF = RetryPolicy(attempts=1, base_s=1.0, factor=2.0, cap_s=60.0, jitter=False)
CONCURRENCY = 8
TIMEOUT_GRACE_S = 0.5
"""How much longer than its timeout a command is waited for: whoever handles it tells of the end in that time."""
LOOK_S = 10.0
"""How often whoever follows a command looks for its end in the store."""
UPDATES_MAX = 256
"""Of a command that is followed: so many updates wait to be read, or to be read again."""
_UNKNOWN_TRIES = 5


class Progress(msgspec.Struct, frozen=True):
    """How far a command is, in percent."""

    percent: float
    message: str = ""


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A command that was accepted: durable, and on its way to a handler."""

    command_id: str
    service: str
    command: str
    accepted_at: str


class Tracked:
    """A command that is followed: its progress, and its end. Make it with `Bus.track`."""

    def __init__(self, sender: Sender, sent: Sent, timeout_s: float) -> None:
        self.sent = sent
        self.command_id = sent.command_id
        self._sender = sender
        self._until = asyncio.get_running_loop().time() + timeout_s + TIMEOUT_GRACE_S
        self._timeout_s = timeout_s
        self._updates = deque[Progress](maxlen=UPDATES_MAX)
        self._told = 0
        self._changed = asyncio.Event()
        self._end: wire.CommandCallback | None = None
        self._highest = -1.0
        self._subscriptions: list[BusSubscription] = []

    async def follow(self) -> None:
        """Listen; before the command is sent."""
        subscribe = self._sender.driver.subscribe
        self._subscriptions.append(await subscribe(f"commands.progress.{self.command_id}", self._progressed))
        self._subscriptions.append(await subscribe(f"commands.callback.{self.command_id}", self._ended))

    async def progress(self) -> AsyncIterator[Progress]:
        """Each update, none less than the one before; ends with the command. Of what was told while nobody iterated the
        latest 256 updates are told as well. Raises nothing for a command that failed: `result` does.
        """
        seen = 0
        while True:
            while seen < self._told:
                seen = max(seen, self._told - len(self._updates)) + 1
                yield self._updates[seen - self._told - 1]
            if self._end is not None or not await self._wait():
                return

    async def end(self) -> wire.CommandCallback:
        """How it ended. `deadline_exceeded` (`command_timeout`) where nobody told within its timeout."""
        while self._end is None:
            if not await self._wait():
                raise _timeout(self.sent.service, self.sent.command, self._timeout_s)
        return self._end

    async def result(self) -> Any:
        """What its handler returned; raises its error, or that it was cancelled or timed out."""
        return result_of(await self.end())

    async def aclose(self) -> None:
        """Follow it no more; it goes on."""
        for subscription in self._subscriptions:
            await subscription.aclose()
        self._subscriptions.clear()

    async def _wait(self) -> bool:
        """Until something changed; False at the end of the time allowed. Looks for the end itself now and then, as
        what told of it may have been lost with a connection.
        """
        loop = asyncio.get_running_loop()
        self._changed.clear()
        try:
            async with asyncio.timeout_at(min(self._until, loop.time() + LOOK_S)):
                await self._changed.wait()
        except TimeoutError:
            return await self._look(over=loop.time() >= self._until)
        self._sender.check_open()
        return True

    async def _look(self, *, over: bool) -> bool:
        try:
            found = await read_end(self._sender, self.command_id)
        except GroundplaneError as error:
            if over or not error.retryable:
                raise
            return True
        self._end = self._end or found
        return self._end is not None or not over

    def _progressed(self, message: Message) -> None:
        try:
            told, _ = wire.read(message.payload, wire.CommandProgress)
        except InvalidArgument:
            return  # at most once, and of a foreign worker: the end tells what happened
        if told.percent >= self._highest and self._end is None:
            self._highest = told.percent
            self._updates.append(Progress(told.percent, told.message))
            self._told += 1
            self._changed.set()

    def _ended(self, message: Message) -> None:
        try:
            self._end, _ = wire.read(message.payload, wire.CommandCallback)
        except InvalidArgument as error:
            self._end = wire.CommandCallback(status="failed", error=error.to_record())
        self._changed.set()


class CommandWorker:
    """Handles the commands of one service. Make it with `Bus.handle`."""

    def __init__(
        self,
        sender: Sender,
        service: str,
        handlers: Mapping[str, Bound],
        *,
        concurrency: int,
        backoff: RetryPolicy,
        lease_s: float,
    ) -> None:
        self.service = service
        self._sender = sender
        self._handlers = dict(handlers)
        self._backoff = backoff
        self._active: dict[str, asyncio.Task[Any] | None] = {}
        self._cancelled: dict[str, str] = {}
        self._lost: set[int] = set()
        self._stubborn: set[asyncio.Task[Any]] = set()
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._subscription: BusSubscription | None = None
        self.spec = ConsumerSpec(
            name=consumer_name(service),
            pattern=f"commands.{service}.*",
            lease_s=lease_s,
            max_in_flight=concurrency,
        )
        self._worker = Worker(sender, self.spec, self._handle, concurrency=concurrency, lost=self._on_lost)

    def __repr__(self) -> str:
        return f"<CommandWorker {self.service!r}, {len(self._active)} running>"

    @property
    def failure(self) -> GroundplaneError | None:
        """Why it does not get commands now; None where it does."""
        return self._worker.failure

    async def start(self) -> None:
        """Begin."""
        self._subscription = await self._sender.driver.subscribe("commands.cancel.*", self._cancel)
        await self._worker.start()

    async def aclose(self) -> None:
        """Take no more, let what runs end for 4 s; the rest goes to others. Idempotent, ≤ 10 s."""
        await self._worker.aclose()
        if self._subscription is not None:
            await self._subscription.aclose()

    def _on_lost(self, delivery: Delivery) -> None:
        """Its lease ended: somebody else runs it."""
        task = self._tasks.get(id(delivery))
        if task is not None:
            self._lost.add(id(delivery))
            task.cancel()

    def _cancel(self, message: Message) -> None:
        command_id = message.subject.rpartition(".")[2]
        if command_id not in self._active:
            return  # not here, or not yet: whoever begins it looks for the wish
        self._cancelled[command_id] = _reason(message)
        task = self._active[command_id]
        if task is not None:
            task.cancel()

    async def _handle(self, delivery: Delivery) -> Settlement:
        try:
            command, codec = wire.read(delivery.message.payload, wire.Command)
            if not command.message_id:
                command.message_id = delivery.message.id or new_id()
            check_token("message_id", command.message_id)  # its end is told on a subject of that name
            check_timeout("timeout", command.timeout)
        except InvalidArgument as error:
            return Reject(delivery, "msg_parsing_error", error.to_record())
        if not command.command:
            command.command = delivery.message.subject.rpartition(".")[2]
        self._active[command.message_id] = None
        try:
            return await self._work(delivery, command, codec)
        finally:
            self._active.pop(command.message_id, None)
            self._cancelled.pop(command.message_id, None)
            self._lost.discard(id(delivery))

    async def _work(self, delivery: Delivery, command: wire.Command, codec: Codec) -> Settlement:
        """Decide, and tell of the end. Where the bus itself fails, not the command, it is handed out again."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            end, settlement = await self._decide(delivery, command, codec)
        except GroundplaneError as error:
            return self._put_off(delivery, error, counts=False)
        if end is None:
            return settlement
        self._sender.counters.ended("commands", end.status, loop.time() - began)
        try:
            await self._tell_end(end, codec)
        except GroundplaneError as error:
            return self._put_off(delivery, error, counts=True)
        return settlement

    def _put_off(self, delivery: Delivery, error: GroundplaneError, *, counts: bool) -> Settlement:
        if error.retryable or error.code == "closed":
            counts = counts and error.code != "closed"
            return Nack(delivery, self._backoff.delay_s(delivery.attempt), counts=counts)
        return Reject(delivery, "non_retryable", error.to_record())

    async def _decide(
        self, delivery: Delivery, command: wire.Command, codec: Codec
    ) -> tuple[wire.CommandCallback | None, Settlement]:
        """The end to tell, if it is one, and what becomes of the delivery."""
        command_id = command.message_id
        kept = await self._sender.call(
            lambda: self._sender.driver.last([f"commands.cancel.{command_id}", f"commands.callback.{command_id}"]),
            even_closing=True,
        )
        if _is_over(kept.get(f"commands.callback.{command_id}"), delivery):
            return None, Ack(delivery)
        if f"commands.cancel.{command_id}" in kept and not delivery.redrives:
            reason = _reason(kept[f"commands.cancel.{command_id}"])
            return self._end(command, delivery, "cancelled", error=_cancelled(reason)), Ack(delivery)
        left = self._left_s(command, delivery)
        if left <= 0:
            late = _timeout(self.service, command.command, command.timeout).to_record()
            return self._end(command, delivery, "timed_out", error=late), Reject(delivery, "command_timeout", late)
        handler = self._handlers.get(command.command)
        if handler is None:
            return self._unknown(command, delivery)
        if delivery.attempt > 1 + max(0, command.max_retries):
            worn = ErrorRecord("unavailable", "its handlers died or hung at every attempt", "attempts_exhausted")
            return self._end(command, delivery, "failed", error=worn), Reject(delivery, "attempts_exhausted", worn)
        return await self._attempt(handler, command, delivery, left, codec)

    def _unknown(self, command: wire.Command, delivery: Delivery) -> tuple[wire.CommandCallback | None, Settlement]:
        """Another instance, newer or older, may know it."""
        if delivery.attempt < _UNKNOWN_TRIES:
            return None, Nack(delivery, self._backoff.delay_s(delivery.attempt))
        error = NotFound(f"command: nobody of {self.service!r} handles {command.command!r}").to_record()
        return self._end(command, delivery, "failed", error=error), Reject(delivery, "non_retryable", error)

    async def _attempt(
        self, handler: Bound, command: wire.Command, delivery: Delivery, left_s: float, codec: Codec
    ) -> tuple[wire.CommandCallback | None, Settlement]:
        command_id = command.message_id
        until = asyncio.get_running_loop().time() + left_s
        report = partial(self._report, command_id, codec)
        context = CommandContext(self._sender.bus, command, self.service, delivery.attempt, until, report)
        parent = carried(command.headers) or carried(delivery.message.headers)
        with traces.start_under(parent, names.on_queue(names.PROCESS, delivery.message.subject), names.CONSUMER):
            await report(0.0, "")
            task = asyncio.create_task(handler.call(command.payload, context))
            self._active[command_id] = self._tasks[id(delivery)] = task
            if command_id in self._cancelled:
                task.cancel()
            try:
                done, _ = await asyncio.wait({task}, timeout=left_s)
            finally:
                del self._tasks[id(delivery)]
                await self._stop(task)
        return await self._outcome(command, delivery, task, in_time=bool(done), codec=codec)

    async def _stop(self, task: asyncio.Task[Any]) -> None:
        """Cancel what still runs; a handler that does not listen to that is left to itself."""
        if task.done():
            return
        task.cancel()
        _, left = await asyncio.wait({task}, timeout=TIMEOUT_GRACE_S)
        for one in left:
            self._stubborn.add(one)
            one.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._stubborn.discard(task)
        if not task.cancelled():
            task.exception()  # looked at: its end was told long ago

    async def _outcome(
        self, command: wire.Command, delivery: Delivery, task: asyncio.Task[Any], *, in_time: bool, codec: Codec
    ) -> tuple[wire.CommandCallback | None, Settlement]:
        command_id = command.message_id
        reason = self._cancelled.get(command_id)
        if id(delivery) in self._lost:
            return None, Nack(delivery)  # another has it: what is settled here changes nothing
        if not in_time:
            late = _timeout(self.service, command.command, command.timeout).to_record()
            return self._end(command, delivery, "timed_out", error=late), Reject(delivery, "command_timeout", late)
        if task.cancelled():
            error = _cancelled(reason if reason is not None else "its handler cancelled itself")
            return self._end(command, delivery, "cancelled", error=error), Ack(delivery)
        failure = task.exception()
        if failure is None:
            return await self._succeeded(command, delivery, task.result(), codec)
        record = error_record(failure)
        final = record.code == "invalid_argument" and not record.retryable
        delay_s = self._backoff.delay_s(delivery.attempt)
        if final or delivery.attempt > max(0, command.max_retries) or delay_s >= self._left_s(command, delivery):
            why = "non_retryable" if final else "max_retries_exhausted"
            return self._end(command, delivery, "failed", error=record), Reject(delivery, why, record)
        return None, Nack(delivery, delay_s)

    async def _succeeded(
        self, command: wire.Command, delivery: Delivery, result: Any, codec: Codec
    ) -> tuple[wire.CommandCallback | None, Settlement]:
        """A result that cannot be told is a failure, and trying again would give the same."""
        end = self._end(command, delivery, "succeeded", result=result)
        try:
            self._end_message(end, codec)
        except InvalidArgument as refused:
            error = unsendable(f"{self.service}.{command.command}", refused)
            return self._end(command, delivery, "failed", error=error), Reject(delivery, "non_retryable", error)
        await self._report(command.message_id, codec, 100.0, "")
        return end, Ack(delivery)

    def _left_s(self, command: wire.Command, delivery: Delivery) -> float:
        """Seconds until the timeout; from its being stored (again) where a foreign sender gave no deadline."""
        now_ms = self._sender.driver.clock.now_ms()
        if delivery.redrives:
            return command.timeout
        if command.deadline_at:
            return min(command.timeout, (command.deadline_at - now_ms) / 1000)
        return min(command.timeout, command.timeout + SKEW_S - (now_ms - delivery.stored_at) / 1000)

    async def _report(self, command_id: str, codec: Codec, percent: float, text: str) -> None:
        """At most once: what cannot be sent now is not sent, and the command goes on."""
        told = wire.CommandProgress(**wire.head(self.service), correlation_id=command_id, percent=percent, message=text)
        message = self._sender.message(f"commands.progress.{command_id}", told, codec)
        try:
            await self._sender.driver.publish(message)
        except GroundplaneError:
            self._sender.counters.add("progress_lost")

    def _end(
        self,
        command: wire.Command,
        delivery: Delivery,
        status: wire.End,
        *,
        result: Any = None,
        error: ErrorRecord | None = None,
    ) -> wire.CommandCallback:
        return wire.CommandCallback(
            **wire.head(self.service),
            correlation_id=command.message_id,
            target=command.source,
            trace_id=command.trace_id,
            command=command.command,
            status=status,
            result=result,
            error=error,
            attempts=delivery.attempt,
            redrives=delivery.redrives,
        )

    async def _tell_end(self, end: wire.CommandCallback, codec: Codec) -> None:
        try:
            message = self._end_message(end, codec)
        except InvalidArgument:  # the details of its error are too large
            end.error = bare(wire.read_error(end.error))
            message = self._end_message(end, codec)
        await self._sender.call(lambda: self._sender.driver.append([message]), even_closing=True)

    def _end_message(self, end: wire.CommandCallback, codec: Codec) -> Message:
        return self._sender.message(f"commands.callback.{end.correlation_id}", end, codec)


def consumer_name(service: str) -> str:
    """The durable consumer of a service's commands."""
    if len(service) <= 60:
        return f"cmd-{service}"
    return f"cmd-{service[:43]}-{hashlib.blake2b(service.encode(), digest_size=8).hexdigest()}"


def check_priority(priority: object) -> Priority:
    """The priority of this name."""
    if priority not in get_args(wire.PriorityName):
        raise InvalidArgument(f"priority: {priority!r} is not one of {', '.join(get_args(wire.PriorityName))}")
    return Priority[str(priority).upper()]


async def read_end(sender: Sender, command_id: str) -> wire.CommandCallback | None:
    """How a command ended; None where that is not known (yet, or any more)."""
    subject = f"commands.callback.{command_id}"
    found = await sender.call(lambda: sender.driver.last([subject]))
    return wire.read(found[subject].payload, wire.CommandCallback)[0] if subject in found else None


def result_of(end: wire.CommandCallback) -> Any:
    """What the handler returned, or its error raised."""
    if end.status == "succeeded":
        return end.result
    raise from_record(wire.read_error(end.error))


def _is_over(callback: Message | None, delivery: Delivery) -> bool:
    """Whether an earlier attempt told of the end and died before it was settled."""
    if callback is None:
        return False
    try:
        end, _ = wire.read(callback.payload, wire.CommandCallback)
    except InvalidArgument:
        return False
    return end.redrives >= delivery.redrives


def _reason(message: Message) -> str:
    try:
        return wire.read(message.payload, wire.CommandCancel)[0].reason
    except InvalidArgument:
        return ""


def _cancelled(reason: str) -> ErrorRecord:
    text = f"command: was cancelled: {reason}" if reason else "command: was cancelled"
    return FailedPrecondition(text, reason="command_cancelled").to_record()


def _timeout(service: str, command: str, timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"Command timeout: {service}.{command} was not done within {timeout_s:g} s",
        reason="command_timeout",
        details={"service": service, "command": command, "timeout_s": timeout_s},
    )
