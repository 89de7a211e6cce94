"""One instance of a service from its start to its end: lifecycle and registration together.

    async with Service.open(registry, "quotes", version="1.4.0") as service:
        …                                   # STARTED, and found by others

The hooks of STARTING run before anybody can find the instance; those of STOPPING when everybody has been told that it
shuts down, and before its entry is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from groundplane.core.errors import FailedPrecondition, GroundplaneError
from groundplane.services.lifecycle import Hook, LifeState, ServiceLifecycle
from groundplane.services.registration import Readiness, Registration
from groundplane.services.registry import Registry
from groundplane.telemetry.logs import get_logger

_log = get_logger("services")


class Service:
    """An instance that lives. Made by `Service.open`."""

    def __init__(self, registry: Registry, name: str, options: Mapping[str, Any]) -> None:
        self.lifecycle = ServiceLifecycle(name)
        self._registry, self._options = registry, options
        self._stack = AsyncExitStack()
        self._registration: Registration | None = None

    def __repr__(self) -> str:
        return f"<Service {self.lifecycle.name} {self.lifecycle.state}>"

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        registry: Registry,
        name: str,
        *,
        instance_id: str | None = None,
        version: str = "",
        metadata: Mapping[str, Any] | None = None,
        readiness: Readiness | None = None,
        hooks: Iterable[tuple[LifeState, Hook]] = (),
    ) -> AsyncIterator[Service]:
        """Start the service with its hooks, register it, and stop it at the end of the block. Raises what a hook of the
        start raised, what `Registration.open` raises, and an `ExceptionGroup` of what hooks of the stop raised.
        """
        options = {"instance_id": instance_id, "version": version, "metadata": metadata, "readiness": readiness}
        service = cls(registry, name, options)
        life = service.lifecycle
        life.on(LifeState.STOPPING, service._deregister)  # the last of them: hooks of a stop run in reverse order
        for state, hook in hooks:
            life.on(state, hook)
        life.on(LifeState.STARTING, service._register)
        life.on(LifeState.STOPPING, service._drain)
        try:
            await life.start()
            yield service
        except BaseException as error:
            if not life.state.terminal:
                _log.warning("service_ends", service=name, error=f"{type(error).__name__}: {error}")
            raise
        finally:
            await life.stop()

    @property
    def registration(self) -> Registration:
        """What is told of this instance. `failed_precondition` while it is not registered."""
        if self._registration is None:
            raise FailedPrecondition(
                f"{self.lifecycle.name}: is {self.lifecycle.state} and not registered", reason="lifecycle"
            )
        return self._registration

    async def _register(self) -> None:
        opening = self._registry.register(self.lifecycle.name, **self._options)
        self._registration = await self._stack.enter_async_context(opening)

    async def _drain(self) -> None:
        if self._registration is None:
            return
        try:
            await self._registration.drain()
        except GroundplaneError as error:  # the store is away: the instance stops all the same
            _log.warning("drain_not_told", service=self.lifecycle.name, error=error.message)

    async def _deregister(self) -> None:
        await self._stack.aclose()
        self._registration = None


__all__ = ["Service"]
