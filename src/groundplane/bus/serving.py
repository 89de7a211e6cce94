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
from groundplane.core.codec import codec_of, decode, encode
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


class _Call:
    """A request from when it comes until it is answered. `task` is its own, `request_id` empty until it is read."""

    __slots__ = ("given_up", "message", "method", "overdue", "request_id", "task")

    def __init__(self, method: str, message: Message) -> None:
        self.method = method
        self.message = message
        self.task: asyncio.Task[None]
        self.request_id = ""
        self.given_up = False
        self.overdue = False

    def late(self) -> None:
        """Nobody waits any more."""
        self.overdue = True
        self.task.cancel()


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
        self._ended = sender.counters.of("served").ended
        self._calls: set[_Call] = set()
        self._by_id: dict[str, _Call] = {}
        self._deadlines: DeadlineTimer[_Call] = DeadlineTimer(_Call.late)
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
            await asyncio.wait([call.task for call in self._calls], timeout=GRACE_S)
        self._leaving = True
        for call in self._calls:
            call.task.cancel()
        if self._calls:
            await asyncio.wait([call.task for call in self._calls], timeout=GRACE_S)
        self._calls.clear()  # one that was cancelled before it began takes nothing out
        self._deadlines.clear()

    def _take(self, method: str, message: Message) -> None:
        call = _Call(method, message)
        full = len(self._calls) >= self._concurrency + WAITING_MAX
        work = self._refuse(call) if full else self._handle(call)
        call.task = self._loop.create_task(work, name=self._task_name)
        self._calls.add(call)

    def _cancel(self, message: Message) -> None:
        with suppress(InvalidArgument):  # it cancels nothing that anybody could name
            cancel, _ = wire.read(message.payload, wire.RpcCancel)
            # soon: its request may have come in the same packet, and be known once its task has begun
            self._loop.call_soon(self._give_up, cancel.correlation_id)

    def _give_up(self, request_id: str) -> None:
        call = self._by_id.get(request_id)
        if call is not None:
            call.given_up = True
            call.task.cancel()

    async def _refuse(self, call: _Call) -> None:
        error = ResourceExhausted(
            f"{self.service}: {self.instance!r} has {self._concurrency} calls under way and {WAITING_MAX} that wait",
            reason="too_many_calls",
        )
        try:
            await self._answer(call, error=error.to_record())
        finally:
            self._ended(error.code, 0.0)
            self._calls.discard(call)

    async def _handle(self, call: _Call) -> None:
        began = self._loop.time()
        try:
            request = decode(call.message.payload, wire.RpcRequest)
            if request.message_id:
                call.request_id = request.message_id
                self._by_id[request.message_id] = call
            if traces.on():
                parent = carried(request.headers) or carried(call.message.headers)
                with traces.start_under(parent, f"{self.service}.{call.method}", names.SERVER):
                    result = await self._run(call, request, began)
            else:
                traces.carry_on(request.headers, call.message.headers)
                result = await self._run(call, request, began)
        except asyncio.CancelledError:
            if self._leaving and not call.given_up:
                gone = Unavailable(f"{self.service}: {self.instance!r} stopped during the call; its outcome is unknown")
                await self._answer(call, error=gone.to_record())
            self._ended("cancelled", self._loop.time() - began)
            raise
        except Exception as error:  # noqa: BLE001  whatever a handler raises is the caller's answer
            record = error_record(error)
            self._ended(record.code, self._loop.time() - began)
            await self._answer(call, error=record)
        else:
            self._ended("ok", self._loop.time() - began)
            await self._answer(call, result=result)
        finally:
            self._calls.discard(call)
            if self._by_id.get(call.request_id) is call:
                del self._by_id[call.request_id]

    async def _run(self, call: _Call, request: wire.RpcRequest, began: float) -> Any:
        allowed = _allowed_s(request, self._sender.driver.clock.now_ms())
        until, handler, context = began + allowed, self._handlers[call.method], None
        if handler.takes_context:
            context = CallContext(self._sender.bus, request, self.service, call.method, until)
        deadline.set(until)  # of this task alone
        self._deadlines.set(call, until)
        try:
            if not self._turns.take():
                await self._turns.wait()
            try:
                return await handler.started(request.params, context)
            finally:
                self._turns.give_back()
        except (TimeoutError, asyncio.CancelledError) as error:
            others = call.overdue and call.task.uncancel()  # as `asyncio.timeout` has it, without its timer
            if not call.overdue or (others and isinstance(error, asyncio.CancelledError)):
                raise
            raise DeadlineExceeded(
                f"{self.service}.{call.method}: did not end within the {allowed:g} s that its caller waits",
                reason="deadline_exceeded",
            ) from error
        finally:
            self._deadlines.drop(call)

    async def _answer(self, call: _Call, *, result: Any = None, error: ErrorRecord | None = None) -> None:
        if not call.message.reply_to:
            return
        try:
            await self._reply(call, result, error)
        except InvalidArgument as refused:
            told = unsendable(call.message.subject, refused) if error is None else bare(error)
            await self._reply(call, None, told)
        except GroundplaneError as failure:
            self._sender.counters.add("answers_lost")
            if not failure.retryable and failure.code != "closed":
                raise

    def _reply(self, call: _Call, result: Any, error: ErrorRecord | None) -> Awaitable[None]:
        response = wire.RpcResponse(
            message_id=new_id(),
            timestamp=iso_z(SYSTEM_CLOCK.now_ms()),
            source=self.service,
            correlation_id=call.request_id,
            success=error is None,
            result=result,
            error=error,
        )
        answer = encode(response, codec_of(call.message.payload))
        return self._sender.driver.publish(self._sender.raw(call.message.reply_to, answer))


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
