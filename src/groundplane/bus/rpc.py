"""Requests: to one instance of a service, chosen here; with a deadline that travels, and a caller that may give up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any

import msgspec

from groundplane.bus import wire
from groundplane.bus.port import Message
from groundplane.bus.presence import Directory, Select, check_select
from groundplane.bus.sending import Sender, check_arguments, check_headers, check_timeout, deadline
from groundplane.bus.subjects import check_token
from groundplane.core.clock import SYSTEM_CLOCK, iso_z
from groundplane.core.codec import Codec
from groundplane.core.errors import DeadlineExceeded, GroundplaneError, Internal, InvalidArgument, from_record
from groundplane.core.ids import new_id
from groundplane.telemetry import trace_names as names
from groundplane.telemetry import traces

Choice = tuple[Select, str | None, str | None]
"""How to choose an instance, by which key, or which one."""
_NO_SPAN = nullcontext()
_SERVICES_MAX = 10_000
_INSTANCES_TRIED = 3


class Caller:
    """Makes requests."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._loop = asyncio.get_running_loop()
        self._directories: dict[str, Directory] = {}
        self._giving_up: set[asyncio.Task[None]] = set()
        self._waiting: dict[str, wire.RpcRequest] = {}

    async def request(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None,
        *,
        timeout_s: float,
        select: Select,
        key: str | None,
        instance: str | None,
        headers: Mapping[str, str] | None,
        codec: Codec | None,
        result_type: Any,
    ) -> Any:
        """See `Bus.request`."""
        check_token("service", service)
        check_token("method", method)
        if select != "round_robin" or key is not None:
            check_select(select, key)
        if instance is not None:
            check_token("instance", instance)
        arguments = check_arguments("params", params)
        timeout_s = check_timeout("timeout_s", timeout_s)
        until = deadline.get()
        if until is not None:
            timeout_s = min(timeout_s, until - self._loop.time())
            if timeout_s <= 0:
                raise DeadlineExceeded("timeout_s: the request that is handled here is past its deadline")
        with traces.start(f"{service}.{method}", names.CLIENT) if traces.on() else _NO_SPAN:
            trace_id, carried = self._sender.traced(check_headers(headers))
            request = wire.RpcRequest(
                message_id=new_id(),
                trace_id=trace_id,
                timestamp=iso_z(SYSTEM_CLOCK.now_ms()),
                source=self._sender.source,
                target=service,
                headers=carried,
                method=method,
                params=arguments,
                timeout=timeout_s,
                deadline_at=self._sender.driver.clock.now_ms() + int(timeout_s * 1000),
            )
            payload = wire.write(request, codec or self._sender.codec)
            self._waiting[request.message_id] = request
            try:
                answer = await self._answered(service, method, payload, timeout_s, (select, key, instance))
            except (TimeoutError, DeadlineExceeded):
                self._give_up(service, request)
                raise self._late(request) from None
            except asyncio.CancelledError:
                self._give_up(service, request)
                raise
            finally:
                del self._waiting[request.message_id]
            return _result(answer, request, result_type)

    async def aclose(self) -> None:
        """Give up what still waits, listen no more."""
        await asyncio.gather(*(self._tell(one.target, one) for one in self._waiting.values()))
        for directory in self._directories.values():
            await directory.aclose()
        if self._giving_up:
            await asyncio.wait(self._giving_up, timeout=1.0)

    async def _answered(self, service: str, method: str, payload: bytes, timeout_s: float, choice: Choice) -> Message:
        """The answer of the instance that was named or chosen, of any where none is known, within `timeout_s`."""
        subject, (select, key, instance) = f"rpc.{service}.{method}", choice
        send, raw = self._sender.driver.request, self._sender.raw
        if instance is not None:
            return await send(raw(f"{subject}.{instance}", payload, ""), timeout_s)
        directory, until = self._directory(service), self._loop.time() + timeout_s
        for _ in range(_INSTANCES_TRIED):
            instance = directory.choose(method, select, key)
            if instance is None and directory.may_ask:
                async with asyncio.timeout_at(until):
                    await directory.ask()
                instance, timeout_s = directory.choose(method, select, key), until - self._loop.time()
            if instance is None:
                break
            try:
                return await send(raw(f"{subject}.{instance}", payload, ""), timeout_s)
            except GroundplaneError as error:
                if error.reason != "no_responder":
                    raise
                directory.forget(instance)
                timeout_s = until - self._loop.time()
        return await send(raw(subject, payload, ""), timeout_s)

    def _directory(self, service: str) -> Directory:
        found = self._directories.get(service)
        if found is None:
            if len(self._directories) >= _SERVICES_MAX:
                raise InvalidArgument(f"service: {service!r} would be one more than the {_SERVICES_MAX} called so far")
            found = self._directories[service] = Directory(self._sender, service)
        return found

    def _late(self, request: wire.RpcRequest) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"timeout_s: {request.target}.{request.method} did not answer within {request.timeout:g} s; its outcome is "
            "not known",
            reason="deadline_exceeded",
            details={"request_id": request.message_id, "timeout_s": request.timeout},
        )

    def _give_up(self, service: str, request: wire.RpcRequest) -> None:
        """Tell the handler that nobody waits; in a task, as the caller may be cancelled."""
        if self._sender.stopping.is_set():
            return
        task = asyncio.create_task(self._tell(service, request), name="groundplane-bus-give-up")
        self._giving_up.add(task)
        task.add_done_callback(self._giving_up.discard)

    async def _tell(self, service: str, request: wire.RpcRequest) -> None:
        cancel = wire.RpcCancel(**wire.head(self._sender.source), correlation_id=request.message_id)
        with suppress(GroundplaneError):  # at most once: the handler has the deadline as well
            await self._sender.driver.publish(self._sender.transient(f"control.cancel.{service}", cancel))


def _result(answer: Message, request: wire.RpcRequest, result_type: Any) -> Any:
    try:
        response, _ = wire.read(answer.payload, wire.RpcResponse)
        wire.check_answer(response)
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
