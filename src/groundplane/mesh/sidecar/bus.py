"""What handlers ask of the plane's bus: requests, events and commands, each in the name of its call.

The bus is opened when the first handler asks. It comes from `plane`, found by its name: the mesh knows no bus.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from groundplane.core.envelope import Envelope
from groundplane.core.errors import FailedPrecondition, InvalidArgument, Unsupported
from groundplane.core.lazily import Lazily
from groundplane.core.trace_context import TraceContext, carried
from groundplane.mesh.routing import dedup_key
from groundplane.telemetry import traces

OPS = frozenset({"call", "publish", "send"})
AT_ONCE = 64
"""Of one call of a handler; what is more waits."""
_PLANE = "groundplane.plane"
_OPTIONS = {
    "call": frozenset({"timeout_s", "select", "key", "instance"}),
    "publish": frozenset({"version", "event_id"}),
    "send": frozenset({"priority", "max_retries", "timeout_s", "command_id"}),
}


class Calls(Protocol):
    """What one piece of work asks; it answers to `GroundplaneError`s alone. See `bus.calling`."""

    async def call(self, name: str, params: Any, /, **options: Any) -> Any:
        """Call a method, return its result."""
        ...

    async def publish(self, name: str, payload: Any, /, **options: Any) -> str:
        """Publish an event, return its id."""
        ...

    async def send(self, name: str, payload: Any, /, **options: Any) -> str:
        """Send a command, return its id."""
        ...


class ServiceBus(Protocol):
    """The bus, as far as a sidecar knows it."""

    def calls(self, scope: str, until: float | None = None) -> Calls:
        """As the work of that name sees it, which ends at `until`."""
        ...


def opening(
    url: str, *, namespace: str, state: str, name: str
) -> Callable[[], AbstractAsyncContextManager[ServiceBus]]:
    """How the bus is opened."""

    def opened() -> AbstractAsyncContextManager[ServiceBus]:
        found: AbstractAsyncContextManager[ServiceBus] = importlib.import_module(_PLANE).open_bus(
            url, namespace=namespace, state=state, name=name
        )
        return found

    return opened


class Outside:
    """What one call of a handler asks of the bus, bounded by that call's end and in its trace."""

    def __init__(self, bus: Lazily[ServiceBus] | None, envelope: Envelope, actor: str) -> None:
        self._trace = carried(envelope.headers)
        self._until: float | None = None
        self._bus = bus
        self._scope = f"actor/{actor}/{dedup_key(envelope)}"
        self._calls: Calls | None = None
        self._room = asyncio.Semaphore(AT_ONCE)
        self._running: set[asyncio.Task[Any]] = set()
        self._stopped = ""

    def began(self, trace: TraceContext | None, timeout_s: float | None) -> None:
        """The handler is called now, in the span of that context, and has so long."""
        self._trace = trace or self._trace
        self._until = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s

    async def ask(self, op: str, name: Any, value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Do it. Raises `unsupported` without a bus, `failed_precondition` (`call_ended`) when the call ends first,
        `deadline_exceeded` when its time is over, and what the bus raises.
        """
        if self._bus is None:
            raise Unsupported(f"{op}: this sidecar has no bus; give it --bus")
        unknown = sorted(set(options) - _OPTIONS[op])
        if unknown:
            raise InvalidArgument(f"{unknown[0]}: is no option of {op}; upgrade the sidecar")
        self._check()
        task = asyncio.create_task(self._done(self._bus, op, name, value, options), name=f"groundplane-{op}")
        self._running.add(task)
        try:
            await asyncio.wait([task])
            if task.cancelled():
                self._check()
            return {"value": task.result()}
        finally:
            self._running.discard(task)
            task.cancel()

    def stop(self, why: str) -> None:
        """The call is over, or nobody wants its outcome: what runs is cancelled, and so are those it waits for."""
        self._stopped = self._stopped or why
        for task in self._running:
            task.cancel()

    async def _done(self, bus: Lazily[ServiceBus], op: str, name: Any, value: Any, options: Mapping[str, Any]) -> Any:
        async with self._room:
            if self._calls is None:
                self._calls = (await bus.get()).calls(self._scope, self._until)
            with traces.Span(self._trace):
                return await getattr(self._calls, op)(name, value, **options)

    def _check(self) -> None:
        if self._stopped:
            raise FailedPrecondition(f"ctx: the call of the handler is over: {self._stopped}", reason="call_ended")


__all__ = ["OPS", "Outside", "ServiceBus", "opening"]
