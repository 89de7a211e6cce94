"""Finding the instances of a service: cached, watched, counted, over any source.

async with Discovery.open(registry) as discovery:
    found = await discovery.find("quotes")          # healthy ones; found.stale where the source is away
    one = await discovery.select("quotes", "sticky", key="customer-7")
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import msgspec

from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import DeadlineExceeded, GroundplaneError
from groundplane.core.lifecycle import Lifecycle
from groundplane.core.retry import RetryPolicy
from groundplane.services.cache import InstanceCache, Kept
from groundplane.services.following import Following
from groundplane.services.names import check_token
from groundplane.services.port import Instance, InstanceChange, InstanceSource
from groundplane.services.selection import Selector, Strategy
from groundplane.services.settings import DiscoverySettings
from groundplane.telemetry.calls import measured

_PASSING = frozenset({"unavailable", "deadline_exceeded", "resource_exhausted"})


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The instances of a service, sorted by id, as the source told them `age_s` seconds ago. `cached`: it was not asked
    for this. `stale`: it was asked and did not answer, and `error` is why.
    """

    service_name: str
    instances: tuple[Instance, ...]
    age_s: float
    cached: bool
    stale: bool = False
    error: str = ""


class DiscoveryStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since it was opened. A hit asked the source for nothing of its own: it was answered from the cache, or
    waited for what somebody else had asked just then. `invalidations` are services whose answer, kept or on its way, a
    change has made old.
    """

    hits: int
    misses: int
    stale: int
    entries: int
    evictions: int
    invalidations: int
    watching: bool
    watch_losses: int


class _Lookup:
    """One question to the source that everybody who wants to know waits for."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.outdated = False
        self.task: asyncio.Task[Kept]


class Discovery:
    """Looks services up in a source, which stays the caller's. Everything may be called concurrently."""

    def __init__(
        self,
        source: InstanceSource,
        settings: DiscoverySettings | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        rand: random.Random | None = None,
    ) -> None:
        self.source = source
        self.settings = settings = settings or DiscoverySettings()
        self._cache = InstanceCache(
            ttl_s=settings.cache_s, stale_s=settings.stale_s, entries_max=settings.cache_entries, clock=clock
        )
        self._selector = Selector(rand)
        self._lookups: dict[str, _Lookup] = {}
        self._lifecycle = Lifecycle("discovery")
        retry = RetryPolicy(base_s=settings.retry_base_s, cap_s=settings.retry_cap_s)
        self._following = Following(source, retry=retry)
        self._synced = asyncio.Event()
        self._hits = self._misses = self._stale = self._asked_in_all = 0

    def __repr__(self) -> str:
        state = "closed" if self._lifecycle.closed else "watching" if self._following.flowing else "open"
        return f"<Discovery of {self.source.name} {state}, {len(self._cache)} services cached>"

    @classmethod
    @asynccontextmanager
    async def open(
        cls, source: InstanceSource, settings: DiscoverySettings | None = None, *, clock: Clock = SYSTEM_CLOCK
    ) -> AsyncIterator[Discovery]:
        """A discovery that watches the source until the end of the block, where the settings do not say otherwise."""
        discovery = cls(source, settings, clock=clock)
        try:
            if discovery.settings.watch:
                discovery._lifecycle.spawn(discovery._watch(), name="watch")
            yield discovery
        finally:
            await discovery.aclose()

    @measured("discovery")
    async def find(self, service: str, *, healthy_only: bool = True, fresh: bool = False) -> Found:
        """The instances of a service: from the cache where that is at most `cache_s` old and nothing is known to have
        changed, else from the source. An empty list says that there are none.

        Where the source does not answer, what was known of the service for `stale_s` more, marked `stale`; without
        that `unavailable` or `deadline_exceeded`. `fresh` asks the source in any case. Up to `timeout_s` seconds.
        """
        self._lifecycle.check_open()
        check_token("service", service)
        kept = None if fresh else self._cache.fresh(service)
        if kept is not None:
            self._hits += 1
            return self._found(service, kept, healthy_only, cached=True)
        lookup = None if fresh else self._lookups.get(service)
        if joined := lookup is not None:
            self._hits += 1
        else:
            self._misses += 1
            lookup = self._ask(service)
        caller = asyncio.current_task()
        cancelled = caller.cancelling() if caller is not None else 0
        try:
            kept = await asyncio.shield(lookup.task)
        except asyncio.CancelledError:
            if caller is None or caller.cancelling() == cancelled:  # the lookup was cancelled, not who asked
                self._lifecycle.check_open()
            raise
        except GroundplaneError as error:
            return self._found_stale(service, healthy_only, error)
        return self._found(service, kept, healthy_only, cached=joined)

    async def select(
        self,
        service: str,
        strategy: Strategy = "round_robin",
        *,
        key: str | None = None,
        preferred: str | None = None,
    ) -> Instance:
        """One healthy instance of the service (`Selector.select`). Raises as `find`, and `unavailable` (`no_instance`)
        where none is healthy.
        """
        found = await self.find(service)
        return self._selector.select(service, found.instances, strategy, key=key, preferred=preferred)

    async def changes(self, service: str | None = None) -> AsyncGenerator[InstanceChange, None]:
        """What changes in one service, or in all: first what is there, then `synced`, then every change. It survives
        losses of the source, and tells after them what has changed meanwhile. Raises `closed`.
        """
        self._lifecycle.check_open()
        if service is not None:
            check_token("service", service)
        retry = RetryPolicy(base_s=self.settings.retry_base_s, cap_s=self.settings.retry_cap_s)
        following = Following(self.source, service, retry=retry)
        async with aclosing(following.changes()) as changes:
            while True:
                yield await self._lifecycle.run(anext(changes))

    async def synced(self) -> None:
        """Return once the watch has seen everything that there is."""
        self._lifecycle.check_open()
        await self._lifecycle.run(self._synced.wait())

    async def check(self) -> str | None:
        """For readiness: None where the watch is there, or why it is not."""
        if not self.settings.watch or self._following.flowing:
            return None
        error = self._following.last_error or self._lifecycle.failure
        return f"the watch of {self.source.name} is away" + (f": {error}" if error is not None else "")

    def statistics(self) -> DiscoveryStatistics:
        """Counters."""
        return DiscoveryStatistics(
            hits=self._hits,
            misses=self._misses,
            stale=self._stale,
            entries=len(self._cache),
            evictions=self._cache.evictions,
            invalidations=self._cache.invalidations,
            watching=self._following.flowing,
            watch_losses=self._following.losses,
        )

    async def aclose(self) -> None:
        """End the watch and what is asked; calls under way raise `closed`. Idempotent, ≤ 10 s."""
        await self._lifecycle.aclose()

    def _ask(self, service: str) -> _Lookup:
        self._asked_in_all += 1
        overtaken = self._lookups.get(service)
        if overtaken is not None:  # no change will find it any more
            overtaken.outdated = True
        lookup = self._lookups[service] = _Lookup(self._asked_in_all)
        lookup.task = self._lifecycle.spawn(self._fetch(service, lookup), name=f"find:{service}")
        lookup.task.add_done_callback(lambda task: self._asked(service, lookup))
        return lookup

    def _asked(self, service: str, lookup: _Lookup) -> None:
        if self._lookups.get(service) is lookup:
            del self._lookups[service]
        if not lookup.task.cancelled():
            lookup.task.exception()  # looked at, also where everybody who waited was cancelled

    async def _fetch(self, service: str, lookup: _Lookup) -> Kept:
        timeout_s = self.settings.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                instances = await self.source.instances(service)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self.source.name}: did not answer for {service!r} within {timeout_s:g} s"
            ) from None
        return self._cache.put(service, instances, question=lookup.number, invalidated=lookup.outdated)

    def _invalidate(self, service: str) -> None:
        """What is known of the service may be old; so is the answer that is on its way."""
        self._cache.invalidate(service)
        lookup = self._lookups.pop(service, None)
        if lookup is not None:
            lookup.outdated = True
            self._cache.invalidations += 1

    async def _watch(self) -> None:
        first = True
        async with aclosing(self._following.changes()) as changes:
            async for change in changes:
                if change.kind != "synced":
                    self._invalidate(change.service_name)
                elif first:  # what went before the watch began was told to nobody
                    first = False
                    self._cache.invalidate_all()
                    for service in list(self._lookups):
                        self._invalidate(service)
                    self._synced.set()

    def _found(self, service: str, kept: Kept, healthy_only: bool, *, cached: bool) -> Found:
        return Found(
            service_name=service,
            instances=_chosen(kept, healthy_only),
            age_s=self._cache.age_s(kept),
            cached=cached,
        )

    def _found_stale(self, service: str, healthy_only: bool, error: GroundplaneError) -> Found:
        kept = self._cache.stale(service) if error.code in _PASSING else None
        if kept is None:
            raise error
        self._stale += 1
        found = self._found(service, kept, healthy_only, cached=True)
        return msgspec.structs.replace(found, stale=True, error=error.message)


def _chosen(kept: Kept, healthy_only: bool) -> tuple[Instance, ...]:
    return tuple(one for one in kept.instances if one.healthy) if healthy_only else kept.instances


__all__ = ["Discovery", "DiscoveryStatistics", "Found"]
