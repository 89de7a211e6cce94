"""Serving: one instance of a service, its methods, and how many calls it handles at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from groundplane.bus import wire
from groundplane.bus.handlers import Bound, CallContext
from groundplane.bus.port import BusSubscription, Message
from groundplane.bus.presence import Announcer
from groundplane.bus.sending import Sender, bare, deadline, error_record, unsendable
from groundplane.bus.turns import Turns
from groundplane.core.clock import SYSTEM_CLOCK, iso_z
from groundplane.core.codec import Codec, codec_of, decode
from groundplane.core.deadline_timer import DeadlineTimer
from groundplane.core.errors import (
    DeadlineExceeded,
    ErrorRecord,
    GroundplaneError,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from groundplane.core.ids import new_id
from groundplane.core.trace_context import carried
from groundplane.telemetry import trace_names as names
from groundplane.telemetry import traces

CONCURRENCY = 64
WAITING_MAX = 1024
GRACE_S = 5.0
SKEW_S = 2.0
"""How far what two hosts know of the bus's clock may be apart before a request is taken for stale that is not."""
GROUP = "service"
Call = asyncio.Task[None]


class Server:
    """One instance of a service. Make it with `Bus.serve`."""

    def __init__(
        self, sender: Sender, service: str, handlers: Mapping[str, Bound], instance: str, concurrency: int
    ) -> None:
        self.service = service
        self.instance = instance
        self._loop = asyncio.get_running_loop()
        self._task_name = f"groundplane-bus-{service}"
        self._sender = sender
        self._handlers = dict(handlers)
        self._concurrency = concurrency
        self._turns = Turns(concurrency)
        self._calls: dict[Call, str] = {}
        self._by_id: dict[str, Call] = {}
        self._deadlines: DeadlineTimer[Call] = DeadlineTimer(self._is_late)
        self._overdue: set[Call] = set()
        self._given_up: set[str] = set()
        self._leaving = False
        self._subscriptions: list[BusSubscription] = []
        self._announcer = Announcer(sender, service, instance, list(self._handlers))

    def __repr__(self) -> str:
        return f"<Server {self.service!r} {self.instance!r}, {len(self._calls)} calls>"

    async def start(self) -> None:
        """Take calls; every method is in effect when it returns."""
        subscribe = self._sender.driver.subscribe
        self._subscriptions.append(await subscribe(f"control.cancel.{self.service}", self._cancel))
        for method in self._handlers:
            subject, take = f"rpc.{self.service}.{method}", partial(self._take, method)
            self._subscriptions.append(await subscribe(subject, take, group=GROUP))
            self._subscriptions.append(await subscribe(f"{subject}.{self.instance}", take))
        await self._announcer.start()

    async def aclose(self) -> None:
        """Leave, take no more, let calls end for 5 s, then cancel them. Idempotent."""
        await self._announcer.aclose()
        for subscription in self._subscriptions:
            with suppress(GroundplaneError):  # gone with its connection
                await subscription.aclose()
        self._subscriptions.clear()
        if self._calls:
            await asyncio.wait(list(self._calls), timeout=GRACE_S)
        self._leaving = True
        for task in list(self._calls):
            task.cancel()
        if self._calls:
            await asyncio.wait(list(self._calls), timeout=GRACE_S)
        self._calls.clear()  # one that was cancelled before it began takes nothing out
        self._deadlines.clear()

    def _take(self, method: str, message: Message) -> None:
        full = len(self._calls) >= self._concurrency + WAITING_MAX
        work = self._refuse(message) if full else self._handle(method, message)
        self._calls[self._loop.create_task(work, name=self._task_name)] = ""

    def _ended(self, task: Call, request_id: str) -> None:
        self._calls.pop(task, None)
        if self._by_id.get(request_id) is task:
            del self._by_id[request_id]
        self._given_up.discard(request_id)

    def _is_late(self, task: Call) -> None:
        self._overdue.add(task)
        task.cancel()

    def _cancel(self, message: Message) -> None:
        with suppress(InvalidArgument):  # it cancels nothing that anybody could name
            cancel, _ = wire.read(message.payload, wire.RpcCancel)
            # soon: its request may have come in the same packet, and be known once its task has begun
            self._loop.call_soon(self._give_up, cancel.correlation_id)

    def _give_up(self, request_id: str) -> None:
        task = self._by_id.get(request_id)
        if task is not None:
            self._given_up.add(request_id)
            task.cancel()

    async def _refuse(self, message: Message) -> None:
        error = ResourceExhausted(
            f"{self.service}: {self.instance!r} has {self._concurrency} calls under way and {WAITING_MAX} that wait",
            reason="too_many_calls",
        )
        try:
            await self._answer(message, "", codec_of(message.payload), error=error.to_record())
        finally:
            self._sender.counters.ended("served", error.code, 0.0)
            self._calls.pop(asyncio.current_task(), None)  # type: ignore[arg-type]

    async def _handle(self, method: str, message: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        began, codec, request_id = self._loop.time(), codec_of(message.payload), ""
        try:
            request = decode(message.payload, wire.RpcRequest)
            request_id = request.message_id
            self._register(task, request_id)
            result = await self._run(task, method, request, message)
        except asyncio.CancelledError:
            if self._leaving and request_id not in self._given_up:
                gone = Unavailable(f"{self.service}: {self.instance!r} stopped during the call; its outcome is unknown")
                await self._answer(message, request_id, codec, error=gone.to_record())
            self._sender.counters.ended("served", "cancelled", self._loop.time() - began)
            raise
        except Exception as error:  # noqa: BLE001  whatever a handler raises is the caller's answer
            record = error_record(error)
            self._sender.counters.ended("served", record.code, self._loop.time() - began)
            await self._answer(message, request_id, codec, error=record)
        else:
            self._sender.counters.ended("served", "ok", self._loop.time() - began)
            await self._answer(message, request_id, codec, result=result)
        finally:
            self._ended(task, request_id)

    def _register(self, task: Call, request_id: str) -> None:
        if request_id:
            self._calls[task] = request_id
            self._by_id[request_id] = task

    async def _run(self, task: Call, method: str, request: wire.RpcRequest, message: Message) -> Any:
        allowed = _allowed_s(request, self._sender.driver.clock.now_ms())
        until = self._loop.time() + allowed
        deadline.set(until)  # of this task alone
        handler = self._handlers[method]
        bus = self._sender.bus
        context = CallContext(bus, request, self.service, method, until) if handler.takes_context else None
        parent = carried(request.headers) or carried(message.headers)
        with traces.start_in_task(parent, f"{self.service}.{method}", names.SERVER):
            self._deadlines.set(task, until)
            try:
                if not self._turns.take():
                    await self._turns.wait()
                try:
                    return await handler.call(request.params, context)
                finally:
                    self._turns.give_back()
            except (TimeoutError, asyncio.CancelledError) as error:
                others = task in self._overdue and task.uncancel()  # as `asyncio.timeout` has it, without its timer
                if task not in self._overdue or (others and isinstance(error, asyncio.CancelledError)):
                    raise
                raise DeadlineExceeded(
                    f"{self.service}.{method}: did not end within the {allowed:g} s that its caller waits",
                    reason="deadline_exceeded",
                ) from error
            finally:
                self._deadlines.drop(task)
                self._overdue.discard(task)

    async def _answer(
        self,
        message: Message,
        request_id: str,
        codec: Codec,
        *,
        result: Any = None,
        error: ErrorRecord | None = None,
    ) -> None:
        if not message.reply_to:
            return
        try:
            await self._reply(message.reply_to, request_id, codec, result, error)
        except InvalidArgument as refused:
            told = unsendable(message.subject, refused) if error is None else bare(error)
            await self._reply(message.reply_to, request_id, codec, None, told)
        except GroundplaneError as failure:
            self._sender.counters.add("answers_lost")
            if not failure.retryable and failure.code != "closed":
                raise

    def _reply(
        self, reply_to: str, request_id: str, codec: Codec, result: Any, error: ErrorRecord | None
    ) -> Awaitable[None]:
        response = wire.RpcResponse(
            message_id=new_id(),
            timestamp=iso_z(SYSTEM_CLOCK.now_ms()),
            source=self.service,
            correlation_id=request_id,
            success=error is None,
            result=result,
            error=error,
        )
        return self._sender.driver.publish(self._sender.transient(reply_to, response, codec))


def _allowed_s(request: wire.RpcRequest, now_ms: int) -> float:
    """Seconds that the handler has. `deadline_exceeded` where nobody waits any more."""
    allowed = request.timeout
    if not 0 < allowed <= 86_400:
        raise InvalidArgument(f"timeout: {allowed!r} must be more than 0 and at most 86400 seconds")
    if request.deadline_at:
        left = (request.deadline_at - now_ms) / 1000 + SKEW_S
        if left <= 0:
            raise DeadlineExceeded(
                "deadline_at: the request arrived after its caller had stopped waiting; it was not run",
                reason="deadline_exceeded",
            )
        allowed = min(allowed, left)
    return allowed
