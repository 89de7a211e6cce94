"""Services as a process shows them that does something else: the registry, its cleaning, and who leads.

A store of keys that is away holds up nobody: it is opened in the background, again and again, and until then every
question is `unavailable`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from groundplane.core.errors import GroundplaneError, Unavailable
from groundplane.core.lifecycle import Lifecycle
from groundplane.core.retry import RetryPolicy
from groundplane.services.cleaner import Cleaner
from groundplane.services.leadership.observing import Lead, Leaders
from groundplane.services.registry import Registry
from groundplane.telemetry.logs import get_logger

Opening = Callable[[], AbstractAsyncContextManager[Registry]]

FIRST_S = 1.0
"""Opening waits so long for the store; it comes later where that is not enough."""
_log = get_logger("services")


class Directory:
    """The registry of a plane, there or not. Made by `open`; everything may be called concurrently."""

    def __init__(self, opening: Opening, *, retry: RetryPolicy) -> None:
        self._opening = opening
        self._retry = retry
        self._lifecycle = Lifecycle("directory")
        self._tried = asyncio.Event()
        self._registry: Registry | None = None
        self._cleaner: Cleaner | None = None
        self._leaders: Leaders | None = None
        self._error: GroundplaneError | None = None

    def __repr__(self) -> str:
        state = "closed" if self._lifecycle.closed else "away" if self._registry is None else "there"
        return f"<Directory {state}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, opening: Opening | Registry, *, retry: RetryPolicy | None = None) -> AsyncIterator[Directory]:
        """Over a registry, which stays the caller's, or over one that is opened here, and again where that fails. The
        store gets 1 s for a start; nothing of it is raised here.
        """
        made: Opening = (lambda: nullcontext(opening)) if isinstance(opening, Registry) else opening
        directory = cls(made, retry=retry or RetryPolicy(base_s=0.5, cap_s=10.0))
        directory._lifecycle.spawn(directory._run(), name="open")
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_S):
                    await directory._tried.wait()
            yield directory
        finally:
            await directory.aclose()

    @property
    def registry(self) -> Registry:
        """The registry. Raises `unavailable` while it could not be opened, with the reason; `closed`."""
        self._lifecycle.check_open()
        if self._registry is None:
            raise self._away()
        return self._registry

    @property
    def cleaner(self) -> Cleaner:
        """What removes entries that stand still. Raises as `registry`."""
        self._lifecycle.check_open()
        if self._cleaner is None:
            raise self._away()
        return self._cleaner

    def leaders(self) -> list[Lead]:
        """The elections of the registry's bucket and who leads them. Raises as `registry`, and as `Leaders.all`."""
        self._lifecycle.check_open()
        if self._leaders is None:
            raise self._away()
        return self._leaders.all()

    async def aclose(self) -> None:
        """End what runs, and close what was opened here. Idempotent, ≤ 10 s."""
        await self._lifecycle.aclose()

    async def _run(self) -> None:
        attempt = 0
        while True:
            try:
                async with self._opening() as registry:
                    attempt = 0
                    await self._keep(registry)
                return  # closed by its owner
            except GroundplaneError as error:
                attempt += 1
                self._error = error
                self._tried.set()
                _log.warning("registry_away", attempt=attempt, code=error.code, error=error.message)
            finally:
                self._registry = self._cleaner = self._leaders = None
            await asyncio.sleep(self._retry.delay_s(attempt) + self._retry.base_s)

    async def _keep(self, registry: Registry) -> None:
        self._registry = registry
        self._cleaner = Cleaner(registry)
        self._leaders = Leaders(registry.kv)
        self._tried.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._cleaner.run(), name="directory:clean")
            tasks.create_task(self._leaders.run(), name="directory:leaders")

    def _away(self) -> Unavailable:
        why = self._error.message if self._error is not None else "it has not answered yet"
        return Unavailable(f"services: the registry cannot be reached: {why}", details={"port": "kv"})


__all__ = ["Directory"]
