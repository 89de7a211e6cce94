"""The sidecar's loop: receive as much as can be handled, handle it at once, drain when told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from groundplane.core.errors import Closed, GroundplaneError
from groundplane.core.retry import RetryPolicy
from groundplane.mesh.settling import Settler
from groundplane.mesh.sidecar.calls import Active
from groundplane.mesh.sidecar.lanes import Lanes
from groundplane.queues.client import Consumer, Queues
from groundplane.queues.port import Delivery, Nack
from groundplane.telemetry.logs import Logger
from groundplane.telemetry.metrics import ActorMetrics

AHEAD_S = 0.02
"""How much work is held ahead of the calls, in seconds of handling."""
AHEAD_MAX = 256
WINDOW_MAX = 4096
CANCEL_GRACE_S = 0.5
DEAF_S = 10.0
_BACKOFF = RetryPolicy(base_s=0.2, cap_s=2.0)


class Loop:
    """Receives for one actor. `handle` gets each delivery in a task of its own."""

    def __init__(
        self,
        consumer: Consumer,
        settler: Settler,
        handle: Callable[[Delivery], Awaitable[None]],
        *,
        concurrency: int,
        window: int | None,
        active: Active,
        metrics: ActorMetrics,
        log: Logger,
        key: str | None = None,
    ) -> None:
        self._consumer = consumer
        self._settler = settler
        self._handle = handle
        self._concurrency = concurrency
        self._window = window
        self._active = active
        self._metrics = metrics
        self._log = log
        self._lanes = Lanes(key) if key is not None else None
        self._tasks: dict[asyncio.Task[None], Delivery] = {}
        self._room = asyncio.Event()
        self._receiving: asyncio.Task[None] | None = None
        self.failure: BaseException | None = None

    @property
    def in_flight(self) -> int:
        """Deliveries that were received and are not settled."""
        return len(self._tasks)

    def window(self) -> int:
        """How many deliveries to hold: what is being handled, and about 20 ms of work ahead of it.

        Quick handlers are fed without waiting for the queue; slow ones leave the rest to other sidecars.
        """
        if self._window is not None:
            return self._window
        spent = self._active.runtime_s
        ahead = self._concurrency if spent <= 0.0 else round(self._concurrency * AHEAD_S / spent)
        return min(WINDOW_MAX, self._concurrency + min(AHEAD_MAX, ahead))

    async def run(self, stop: asyncio.Event) -> None:
        """Receive until `stop` is set, or the queue fails for good (`failure`)."""
        self._receiving = asyncio.create_task(self._receive(), name="sidecar-receive")
        stopped = asyncio.create_task(stop.wait(), name="sidecar-stop")
        try:
            await asyncio.wait({self._receiving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            self._receiving.cancel()
            await asyncio.gather(stopped, self._receiving, return_exceptions=True)

    async def drain(self, grace_s: float) -> None:
        """Hand back what has not begun, give calls `grace_s` seconds to end, then cancel and hand back the rest."""
        self._active.draining = True
        running = {id(delivery) for delivery, watch in self._active.calls.values() if watch.running}
        waiting = [task for task, delivery in self._tasks.items() if self._waits(task, delivery, running)]
        await self._give_up(waiting)
        if self._tasks:
            self._log.info("draining", running=len(self._tasks), grace_s=grace_s)
            await asyncio.wait(list(self._tasks), timeout=grace_s)
        if self._tasks:
            self._active.cancel_all("drain")
            await asyncio.wait(list(self._tasks), timeout=CANCEL_GRACE_S)
            await self._give_up(list(self._tasks))
        await self._settler.aclose()

    def _waits(self, task: asyncio.Task[None], delivery: Delivery, running: set[int]) -> bool:
        """Whether it is still before its call: those that have been called are settling, and are left to finish."""
        held = [watch for one, watch in self._active.calls.values() if one is delivery]
        return bool(held) and id(delivery) not in running

    async def _give_up(self, tasks: list[asyncio.Task[None]]) -> None:
        held = [self._tasks[task] for task in tasks if task in self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        for delivery in held:
            try:
                await self._settler.settle(Nack(delivery, counts=False))
            except GroundplaneError as error:  # settled in the last moment, or handed back by the closing consumer
                self._log.debug("not_handed_back", message_id=delivery.id, error=str(error))

    async def _receive(self) -> None:
        """Receive for ever. A fault that may pass is waited out, with `failure` set; any other ends it."""
        failures = 0
        while True:
            room = self.window() - len(self._tasks)
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            started = time.perf_counter()
            try:
                deliveries = await self._consumer.receive(room, 1.0)
            except Closed:
                raise
            except GroundplaneError as error:
                self.failure = error
                self._log.error("receive_failed", error=str(error), again=error.retryable)
                if not error.retryable:
                    return
                failures += 1
                await asyncio.sleep(_BACKOFF.delay_s(failures))
                continue
            if failures:
                failures, self.failure = 0, None
            self._metrics.receive.observe(time.perf_counter() - started)
            if deliveries:
                self._active.progressed()
            for delivery in deliveries:
                self._begin(delivery)

    def _begin(self, delivery: Delivery) -> None:
        work = self._lanes.run(delivery, self._in_turn) if self._lanes is not None else self._handle(delivery)
        task = asyncio.get_running_loop().create_task(_awaited(work))
        self._tasks[task] = delivery
        task.add_done_callback(self._ended)

    async def _in_turn(self, delivery: Delivery) -> None:
        """What waited in its lane until the drain began is not begun."""
        if self._active.draining:
            await self._settler.settle(Nack(delivery, counts=False))
        else:
            await self._handle(delivery)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        self._room.set()
        if not task.cancelled() and task.exception() is not None:
            self.failure = task.exception()
            self._log.error("handling_failed", error=repr(task.exception()))


async def _awaited(work: Awaitable[None]) -> None:
    await work


def flow_check(queues: Queues, queue: str, loop: Loop, active: Active) -> Callable[[], Awaitable[str | None]]:
    """A check that proves flow: messages that are ready while this sidecar has room and nothing moves are a fault."""

    async def check() -> str | None:
        if loop.failure is not None:
            return f"receiving failed: {loop.failure}"
        if trouble := active.trouble():
            return f"handling failed: {trouble}"
        try:
            depth = await queues.depth(queue)
        except GroundplaneError as error:
            return f"queue {queue!r}: {error}"
        still = time.monotonic() - active.last_progress
        if depth.ready > 0 and loop.in_flight < loop.window() and still > DEAF_S:
            return f"{depth.ready} messages are ready and nothing was received for {still:.0f} s"
        return None

    return check
