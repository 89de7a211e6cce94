"""Following a source without end: a watch that is lost is begun again, and told as what has changed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from groundplane.core.errors import GroundplaneError, ResourceExhausted, Unavailable
from groundplane.core.retry import RetryPolicy
from groundplane.services.port import Instance, InstanceChange, InstanceSource
from groundplane.telemetry.logs import get_logger

INSTANCES_MAX = 100_000
_FINAL = frozenset({"closed", "permission_denied", "invalid_argument", "unsupported"})
_log = get_logger("services")


class Following:
    """The changes of a source, as long as one likes. Heartbeats that change nothing else are left out.

    It knows up to 100,000 instances; with more of them it is never synced, and `last_error` says why. `synced` comes
    again after each loss.
    """

    def __init__(
        self,
        source: InstanceSource,
        service: str | None = None,
        *,
        retry: RetryPolicy,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._source, self._service, self._retry, self._sleep = source, service, retry, sleep
        self._known: dict[tuple[str, str], Instance] = {}
        self._told: set[tuple[str, str]] = set()
        self._watch: AsyncIterator[InstanceChange] | None = None
        self.synced = False
        """Whether everything that the source has is known, and the watch has not ended."""
        self.losses = 0
        self.last_error: GroundplaneError | None = None

    @property
    def flowing(self) -> bool:
        """Whether it is synced and hears, as far as the watch tells (`flowing`, where a source's watch has that)."""
        return self.synced and bool(getattr(self._watch, "flowing", True))

    @property
    def known(self) -> list[Instance]:
        """The instances, sorted by service and id."""
        return [self._known[key] for key in sorted(self._known)]

    async def changes(self) -> AsyncGenerator[InstanceChange, None]:
        """What changes. Raises what no waiting mends: `closed`, `permission_denied`, `invalid_argument`,
        `unsupported`.
        """
        attempt = 0
        while True:
            self._told = set()
            try:
                async with self._source.watch(self._service) as self._watch:
                    async for change in self._watch:
                        for one in self._apply(change):
                            yield one
                        attempt = 0 if self.synced else attempt
                raise Unavailable(f"{self._source.name}: the watch has ended")
            except GroundplaneError as error:
                self.synced = False
                self.losses += 1
                self.last_error = error
                if error.code in _FINAL:
                    raise
                _log.warning("watch_lost", source=self._source.name, code=error.code, error=error.message)
            attempt += 1
            await self._sleep(self._retry.delay_s(attempt))

    def _apply(self, change: InstanceChange) -> list[InstanceChange]:
        if change.kind == "synced":
            return self._sync()
        key = (change.service_name, change.instance_id)
        if change.kind == "gone" or change.instance is None:
            self._told.discard(key)
            return [change] if self._known.pop(key, None) is not None else []
        if not self.synced:
            self._told.add(key)
        before = self._known.get(key)
        if before is None and len(self._known) >= INSTANCES_MAX:
            raise ResourceExhausted(
                f"instances: {self._source.name} has more than {INSTANCES_MAX}; follow one service",
            )
        self._known[key] = change.instance
        return [] if change.instance.same_as(before) else [change]

    def _sync(self) -> list[InstanceChange]:
        """What went while nobody watched, then that everything is known."""
        lost = sorted(set(self._known) - self._told)
        gone = [InstanceChange(kind="gone", service_name=service, instance_id=one) for service, one in lost]
        for key in lost:
            del self._known[key]
        self._told = set()
        self.synced = True
        self.last_error = None
        return [*gone, InstanceChange(kind="synced")]


__all__ = ["INSTANCES_MAX", "Following"]
