"""What every part of the façade sends with: the driver, who we are, the codec, bounds, traces, and retries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from groundplane.bus import wire
from groundplane.bus.port import BusDriver, Message, Priority
from groundplane.bus.statistics import Counters
from groundplane.core.codec import Codec, encode
from groundplane.core.errors import Closed, ErrorRecord, GroundplaneError, Internal, InvalidArgument
from groundplane.core.ids import new_traceparent
from groundplane.core.retry import RetryPolicy
from groundplane.core.trace_context import TRACEPARENT
from groundplane.telemetry import traces

if TYPE_CHECKING:
    from groundplane.bus.client import Bus

T = TypeVar("T")

RETRY = RetryPolicy(attempts=4, base_s=0.05, factor=3.0, cap_s=1.0)
HEADERS_MAX = 64
SECONDS_MAX = 86_400
LEASE_MIN_S = 0.1
_NOT_WORTH_WAITING = frozenset({"queue_full"})
deadline: ContextVar[float | None] = ContextVar("groundplane_bus_deadline", default=None)
"""When the handler of this task must have answered, by the loop's clock: requests that it makes wait no longer."""


class Sender:
    """Sends messages of one bus. Everything may be called concurrently."""

    bus: Bus
    """Whose it is: what handlers' contexts ask."""

    def __init__(self, driver: BusDriver, *, source: str, instance: str, codec: Codec, retry: RetryPolicy) -> None:
        self.driver = driver
        self.source = source
        self.instance = instance
        self.codec = codec
        self.counters = Counters()
        self.stopping = asyncio.Event()
        self._retry = retry
        self._bytes_max = driver.limits.payload_bytes_max

    def check_open(self) -> None:
        """Raise `closed` once closing has begun."""
        if self.stopping.is_set():
            raise Closed("bus: is closed; open it again")

    def head(self, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The head of new messages but for their ids, in the trace of this task; without one it begins a trace."""
        trace_id, carried = self.traced(headers)
        return {**wire.origin(self.source), "trace_id": trace_id, "headers": carried}

    def traced(self, headers: Mapping[str, str] | None = None) -> tuple[str, dict[str, str]]:
        """The id of the trace of this task, or of a new one, and these headers with its context."""
        context = traces.outgoing()
        if context is None:
            parent = new_traceparent()
            return parent[3:35], {**headers, TRACEPARENT: parent} if headers else {TRACEPARENT: parent}
        return context.trace_id, {**headers, **context.headers()} if headers else context.headers()

    def message(
        self,
        subject: str,
        content: wire.Head,
        codec: Codec | None = None,
        *,
        priority: Priority = Priority.NORMAL,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """The bytes of `content`. `invalid_argument` where it is too large (`payload_too_large`)."""
        payload = wire.write(content, codec or self.codec)
        return self.raw(subject, payload, content.message_id, priority=priority, headers=headers)

    def raw(
        self,
        subject: str,
        payload: bytes,
        message_id: str = "",
        *,
        priority: Priority = Priority.NORMAL,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """A message of bytes; one that is not kept has its id in them, if any. `invalid_argument` where they are too
        many.
        """
        size, most = len(payload), self._bytes_max
        if headers:
            size += sum(len(key) + len(value) for key, value in headers.items())
        if size > most:
            raise InvalidArgument(
                f"payload: the message on {subject!r} has {size} bytes, the limit is {most}; send less, or put the "
                "data into blobs and send its key",
                reason="payload_too_large",
                details={"bytes": size, "bytes_max": most},
            )
        carried = dict(headers) if headers else {}
        return Message(subject=subject, payload=payload, id=message_id, priority=priority, headers=carried)

    def transient(self, subject: str, content: wire.Head, codec: Codec | None = None) -> Message:
        """A message that is not kept: its id is in it, and needs no header."""
        return self.raw(subject, wire.write(content, codec or self.codec))

    async def publish(self, message: Message) -> None:
        """Send it at most once."""
        self.check_open()
        await self.driver.publish(message)

    async def append(self, messages: Sequence[Message]) -> None:
        """Append them, again after a while where that may help: their ids keep them from being doubled."""
        await self.call(lambda: self.driver.append(messages))

    async def call(self, call: Callable[[], Awaitable[T]], *, even_closing: bool = False) -> T:
        """Make a call of the driver that is safe to repeat; up to three more times where its error may pass."""
        attempt = 1
        while True:
            if not even_closing:
                self.check_open()
            try:
                return await call()
            except GroundplaneError as error:
                hopeless = not error.retryable or error.reason in _NOT_WORTH_WAITING
                if hopeless or attempt >= self._retry.attempts:
                    raise
            self.counters.add("retries")
            await self.pause(self._retry.delay_s(attempt))
            attempt += 1

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until closing."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)


def error_record(error: BaseException) -> ErrorRecord:
    """What a handler's exception is to others. What of it cannot be written is left out."""
    record = _record(error)
    try:
        encode(record)
    except InvalidArgument:
        return bare(record)
    return record


def bare(record: ErrorRecord) -> ErrorRecord:
    """An error without what may be too large, or cannot be written."""
    text = record.message.encode(errors="backslashreplace").decode()
    return msgspec.structs.replace(record, message=text[:2000], details={}, traceback="")


def unsendable(method: str, refused: InvalidArgument) -> ErrorRecord:
    """What a caller is told instead of a result that cannot be written, or is too large: the fault is the handler's."""
    text = f"result: what {method} returned cannot be sent: {refused.message}"
    if refused.reason == "payload_too_large":
        return InvalidArgument(text, reason=refused.reason, details=refused.details).to_record()
    return Internal(text, reason=refused.reason).to_record()


def _record(error: BaseException) -> ErrorRecord:
    if isinstance(error, GroundplaneError):
        return error.to_record()
    name = type(error).__qualname__
    module = type(error).__module__
    text = str(error) or name
    kind = name if module == "builtins" else f"{module}.{name}"
    return ErrorRecord("internal", text[:2000], "processing_error", {}, retryable=False, type=kind)


def check_headers(headers: object) -> dict[str, str]:
    """Headers of a caller: texts by name."""
    if not headers:
        return {}
    found = dict(headers) if isinstance(headers, Mapping) else {}
    texts = all(isinstance(one, str) for one in (*found, *found.values()))
    if not 0 < len(found) <= HEADERS_MAX or not texts:
        raise InvalidArgument(f"headers: {headers!r} must be at most {HEADERS_MAX} texts by name")
    return found


def check_arguments(field: str, value: object) -> dict[str, Any]:
    """Arguments by name; None is none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InvalidArgument(f"{field}: {value!r} must be a map of arguments by name")
    return dict(value)


def check_backoff(field: str, value: object) -> RetryPolicy:
    """How long to wait before another attempt."""
    if not isinstance(value, RetryPolicy):
        raise InvalidArgument(f"{field}: {value!r} is no RetryPolicy, such as RetryPolicy(base_s=1.0, factor=2.0)")
    return value


def check_timeout(field: str, value: object) -> float:
    """Seconds that may pass."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= SECONDS_MAX:
        raise InvalidArgument(f"{field}: {value!r} must be more than 0 and at most {SECONDS_MAX} seconds")
    return float(value)


def check_lease(field: str, value: object) -> float:
    """Seconds that a lease lasts: it is extended three times in each."""
    if check_timeout(field, value) < LEASE_MIN_S:
        raise InvalidArgument(f"{field}: {value!r} must be at least {LEASE_MIN_S:g} seconds")
    return float(value)  # type: ignore[arg-type]


def check_count(field: str, value: object, least: int, most: int) -> int:
    """A whole number within bounds."""
    if type(value) is not int or not least <= value <= most:
        raise InvalidArgument(f"{field}: {value!r} must be a whole number from {least} to {most}")
    return value
