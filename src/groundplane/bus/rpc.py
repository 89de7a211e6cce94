"""Requests: to one instance of a service, chosen here; with a deadline that travels, and a caller that may give up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from groundplane.bus import wire
from groundplane.bus.port import Message
from groundplane.bus.presence import Directory, Select, check_select
from groundplane.bus.sending import Sender, check_arguments, check_headers, check_timeout, deadline
from groundplane.bus.statistics import REQUESTS
from groundplane.bus.subjects import check_token
from groundplane.core.clock import SYSTEM_CLOCK, iso_z
from groundplane.core.codec import Codec, decode, encode
from groundplane.core.errors import DeadlineExceeded, GroundplaneError, Internal, InvalidArgument, from_record
from groundplane.core.ids import new_id

Choice = tuple[Select, str | None, str | None]
"""How to choose an instance, by which key, or which one."""
_ANY: Choice = ("round_robin", None, None)
_SERVICES_MAX = 10_000
_INSTANCES_TRIED = 3


class Caller:
    """Makes requests."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._loop = asyncio.get_running_loop()
        self._ended = sender.counters.of("rpc").ended
        self._directories: dict[str, Directory] = {}
        self._giving_up: set[asyncio.Task[None]] = set()
        self._waiting: dict[str, wire.RpcRequest] = {}

    async def request(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None,
        timeout_s: float,
        choice: Choice,
        headers: Mapping[str, str] | None,
        codec: Codec | None,
        result_type: Any,
    ) -> Any:
        """See `Bus.request`."""
        self._sender.check_open()
        began, outcome = self._loop.time(), "cancelled"
        REQUESTS.active += 1
        try:
            if choice != _ANY:
                _check_choice(*choice)
            request = self._made(service, method, params, _left_s(timeout_s, began), headers)
            payload = encode(request, codec or self._sender.codec)
            self._waiting[request.message_id] = request
            try:
                answer = await self._answered(request, payload, began, choice)
            except (TimeoutError, DeadlineExceeded):
                self._give_up(request)
                raise _late(request) from None
            except asyncio.CancelledError:
                self._give_up(request)
                raise
            finally:
                del self._waiting[request.message_id]
            result = _read(answer, request, result_type)
            outcome = "ok"
            return result
        except Exception as error:
            outcome = str(getattr(error, "code", "broken"))
            raise
        finally:
            REQUESTS.active -= 1
            self._ended(outcome, self._loop.time() - began)

    async def aclose(self) -> None:
        """Give up what still waits, listen no more."""
        await asyncio.gather(*(self._tell(one) for one in self._waiting.values()))
        for directory in self._directories.values():
            await directory.aclose()
        if self._giving_up:
            await asyncio.wait(self._giving_up, timeout=1.0)

    def _made(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None,
        timeout_s: float,
        headers: Mapping[str, str] | None,
    ) -> wire.RpcRequest:
        check_token("service", service)
        check_token("method", method)
        sender = self._sender
        trace_id, carried = sender.traced(check_headers(headers) if headers else None)
        return wire.RpcRequest(
            message_id=new_id(),
            trace_id=trace_id,
            timestamp=iso_z(SYSTEM_CLOCK.now_ms()),
            source=sender.source,
            target=service,
            headers=carried,
            method=method,
            params=check_arguments("params", params),
            timeout=timeout_s,
            deadline_at=sender.driver.clock.now_ms() + int(timeout_s * 1000),
        )

    def _answered(self, request: wire.RpcRequest, payload: bytes, began: float, choice: Choice) -> Awaitable[Message]:
        """The answer of the instance that was named, or of one that is chosen."""
        instance = choice[2]
        if instance is None:
            return self._of_chosen(request, payload, began, choice)
        subject = f"rpc.{request.target}.{request.method}.{instance}"
        return self._sender.driver.request(self._sender.raw(subject, payload), request.timeout)

    async def _of_chosen(self, request: wire.RpcRequest, payload: bytes, now: float, choice: Choice) -> Message:
        """The answer of the instance that is chosen `now`, or of the next ones; of any where none is known."""
        method, timeout_s, (select, key, _) = request.method, request.timeout, choice
        send, raw, until = self._sender.driver.request, self._sender.raw, now + timeout_s
        directory = self._directory(request.target)
        for _ in range(_INSTANCES_TRIED):
            instance = directory.choose(method, select, key, now)
            if instance is None and directory.may_ask:
                async with asyncio.timeout_at(until):
                    await directory.ask()
                now = self._loop.time()
                instance, timeout_s = directory.choose(method, select, key, now), until - now
            if instance is None:
                break
            try:
                return await send(raw(f"rpc.{request.target}.{method}.{instance}", payload), timeout_s)
            except GroundplaneError as error:
                if error.reason != "no_responder":
                    raise
                directory.forget(instance)
                now = self._loop.time()
                timeout_s = until - now
        return await send(raw(f"rpc.{request.target}.{method}", payload), timeout_s)

    def _directory(self, service: str) -> Directory:
        found = self._directories.get(service)
        if found is None:
            if len(self._directories) >= _SERVICES_MAX:
                raise InvalidArgument(f"service: {service!r} would be one more than the {_SERVICES_MAX} called so far")
            found = self._directories[service] = Directory(self._sender, service)
        return found

    def _give_up(self, request: wire.RpcRequest) -> None:
        """Tell the handler that nobody waits; in a task, as the caller may be cancelled."""
        if self._sender.stopping.is_set():
            return
        task = asyncio.create_task(self._tell(request), name="groundplane-bus-give-up")
        self._giving_up.add(task)
        task.add_done_callback(self._giving_up.discard)

    async def _tell(self, request: wire.RpcRequest) -> None:
        cancel = wire.RpcCancel(**wire.head(self._sender.source), correlation_id=request.message_id)
        with suppress(GroundplaneError):  # at most once: the handler has the deadline as well
            await self._sender.driver.publish(self._sender.transient(f"control.cancel.{request.target}", cancel))


def _check_choice(select: Select, key: str | None, instance: str | None) -> None:
    if select != "round_robin" or key is not None:
        check_select(select, key)
    if instance is not None:
        check_token("instance", instance)


def _left_s(timeout_s: float, now: float) -> float:
    """Seconds that a request may take, which is made in a handler or not."""
    until = deadline.get()
    if until is None:
        return check_timeout("timeout_s", timeout_s)
    allowed = min(check_timeout("timeout_s", timeout_s), until - now)
    if allowed <= 0:
        raise DeadlineExceeded("timeout_s: the request that is handled here is past its deadline")
    return allowed


def _late(request: wire.RpcRequest) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"timeout_s: {request.target}.{request.method} did not answer within {request.timeout:g} s; its outcome is "
        "not known",
        reason="deadline_exceeded",
        details={"request_id": request.message_id, "timeout_s": request.timeout},
    )


def _read(answer: Message, request: wire.RpcRequest, result_type: Any) -> Any:
    try:
        response = wire.check_answer(decode(answer.payload, wire.RpcResponse))
        if response.correlation_id and response.correlation_id != request.message_id:
            raise InvalidArgument(f"correlation_id: {response.correlation_id!r} is not that of the request")
        if response.success:
            return response.result if result_type is Any else msgspec.convert(response.result, result_type)
    except (InvalidArgument, msgspec.ValidationError) as error:
        raise Internal(
            f"{request.target}.{request.method}: its answer cannot be read: {error}", reason="msg_parsing_error"
        ) from error
    record = wire.read_error(response.error)
    failure = from_record(record)
    if record.type:
        failure.details.setdefault("type", record.type)
    raise failure
