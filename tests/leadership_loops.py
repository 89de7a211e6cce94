"""The simulation of `leadership_simulation`, with the whole of `Leadership` in each member: the real façades on a loop
of its own, whose time is the member's clock, and a driver of `kv` that speaks over the simulated network.

A paused member's loop stands still while its clock goes on, as that of a stopped process does.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from groundplane.core.errors import AlreadyExists, Conflict
from groundplane.core.fencing import Fence
from groundplane.kv import KV, Capability, Change, ChangeKind, Entry, Limits
from groundplane.kv.port import Changes, Selection, WriteOptions
from groundplane.kv.port import Write as Written
from groundplane.services.leadership import Leadership
from leadership_simulation import POLICY, Member, TwoLed, World

LATE_S = 0.01
"""How long after the end of its lease a block may still be seen: one turn of the loop."""


class _NoSelector:
    def select(self, timeout: float | None = None) -> list[Any]:
        return []

    def close(self) -> None:
        pass


class MemberLoop(asyncio.BaseEventLoop):
    """A loop without sockets that runs only when it is told to, at the time that it is given."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._selector = _NoSelector()
        self._clock = clock
        self.errors: list[dict[str, Any]] = []
        self.set_exception_handler(lambda loop, context: self.errors.append(context))

    def time(self) -> float:
        return self._clock()

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    @property
    def next_at(self) -> float | None:
        scheduled: list[Any] = self._scheduled  # type: ignore[attr-defined]
        return scheduled[0].when() if scheduled else None

    def turn(self) -> None:
        """Run what is ready and due, and what that makes ready."""
        events._set_running_loop(self)
        try:
            while self._ready or ((at := self.next_at) is not None and at <= self.time()):  # type: ignore[attr-defined]
                self._run_once()  # type: ignore[attr-defined]
        finally:
            events._set_running_loop(None)


class LoopMember(Member):
    """A process: its loop, its `KV`, its `Leadership`, and work within `acting`."""

    loop: MemberLoop
    leadership: Leadership | None
    feed: asyncio.Queue[Changes]

    def begin(self) -> None:
        self.loop = MemberLoop(self.clock)
        self.leadership, self.inside = None, False
        self.feed = asyncio.Queue()
        self.generation = getattr(self, "generation", 0) + 1
        self._spawn(self._main())

    @property
    def term(self) -> int | None:
        return self.leadership.term if self.leadership is not None else None

    def start(self) -> None:
        self.world.after(self.world.random.uniform(0, 2), self._next_trouble)
        self.turn()

    def turn(self) -> None:
        if self.paused:
            return
        self.loop.turn()
        if self.loop.errors:
            raise AssertionError(f"seed {self.world.seed}: {self.loop.errors}")
        self._check_block()
        if (at := self.loop.next_at) is not None:
            self._wake += 1
            number = self._wake
            true = (at - self._offset) / self._rate
            self.world.at(true + 1e-6, lambda: self._here(lambda: self.turn() if number == self._wake else None))

    def request(self, what: Callable[[], Any]) -> asyncio.Future[Any]:
        """Do `what` at the store, over the network both ways; never answered where something is lost."""
        answer: asyncio.Future[Any] = self.loop.create_future()
        world, generation, chance = self.world, self.generation, self.world.random

        def deliver(value: Any) -> None:
            if generation == self.generation:
                self.loop.call_soon(lambda: answer.done() or answer.set_result(value))
                self.turn()

        def at_the_store() -> None:
            value = what()
            if not world.calm and chance.random() < 0.05:
                world.tally.lost_answers += 1
                return
            world.after(self._latency(), lambda: self._over_network(lambda: deliver(value)))

        def leave() -> None:
            if world.calm or chance.random() >= 0.05:
                world.after(self._latency(), lambda: self._over_network(at_the_store, at_store=True))

        self._pauses_here(0.02)
        self._here(leave)
        return answer

    def tell_later(self) -> None:
        change = self.world.change()  # type: ignore[attr-defined]
        if change is None:
            return
        generation, delay = self.generation, self.world.random.expovariate(200)
        if self.world.random.random() < 0.05:
            delay += self.world.trouble(self.world.random.uniform(0, 2))

        def hear() -> None:
            if generation == self.generation:
                self.loop.call_soon(self.feed.put_nowait, Changes(changes=[change], synced=True))
                self.turn()

        self.world.after(delay, lambda: self._over_network(hear))

    def end(self) -> None:
        """Let go of everything, as a test must and a process need not: nobody hears of it any more."""
        self.generation += 1
        self.cut = True
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        moment = self.clock()
        self.loop._clock = lambda: moment
        while not all(task.done() for task in tasks):
            self.loop.turn()
            moment = self.loop.next_at or moment
        self.loop.turn()
        self.loop.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        events._set_running_loop(self.loop)
        try:
            self._tasks = [self.loop.create_task(work)]
        finally:
            events._set_running_loop(None)

    async def _main(self) -> None:
        async with Leadership.open(
            KV(_Driver(self)), "desk", member=self.name, policy=POLICY, clock=self.clock, on_event=self._noted
        ) as self.leadership:
            await self.leadership.lead(self._act)

    async def _act(self, fence: Fence) -> None:
        self.inside = True
        try:
            while True:
                await asyncio.sleep(self.world.random.uniform(0.02, 0.5))
                if self.term == fence.term:
                    self._pauses_here(0.03)
                    self._here(lambda: self.world.after(self._latency(), lambda: self.world.effect(fence)))
        finally:
            self.inside = False

    def _check_block(self) -> None:
        if self.inside and self.leadership is not None and not self.paused:
            late = self.clock() - self.leadership._election.until
            if self.term is None and late > LATE_S:
                raise TwoLed(f"seed {self.world.seed}: a block of {self.name} runs {late:.3f} s after its lease")

    def _resume(self) -> None:
        super()._resume()
        self.turn()

    def _release(self) -> None:
        if self.leadership is not None and self.term is not None and len(asyncio.all_tasks(self.loop)) < 20:
            self.world.tally.releases += 1
            self._spawn(self.leadership.resign())
            self.turn()

    def _restart(self) -> None:
        self.end()
        self.paused, self._missed, self.cut = False, [], False
        self.begin()
        self.turn()


class _Driver:
    """A driver of `kv` with the one key of an election."""

    capabilities = Capability.FENCES
    limits = Limits(value_bytes_max=4096, ttl_resolution_s=None, history=1)

    def __init__(self, member: LoopMember) -> None:
        self._member = member

    async def get(self, keys: Sequence[str]) -> dict[str, Entry]:
        world: Any = self._member.world
        revision, value = await self._member.request(lambda: (world.revision, world.record))
        if value is None:
            return {}
        return {key: Entry(key=key, value=value, revision=revision, created_at=0) for key in keys}

    async def write(self, writes: Sequence[Written], options: WriteOptions) -> list[int]:
        world: Any = self._member.world
        (one,) = writes
        revision = await self._member.request(lambda: world.write(one.expected or 0, one.value))
        if revision is None:
            raise Conflict("another revision") if one.expected else AlreadyExists("there is one")
        return [revision]

    @asynccontextmanager
    async def watch(self, selection: Selection) -> AsyncIterator[_Feed]:
        self._member.tell_later()
        yield _Feed(self._member.feed)

    async def aclose(self) -> None:
        pass


class _Feed:
    flowing = True

    def __init__(self, queue: asyncio.Queue[Changes]) -> None:
        self._queue = queue

    async def receive(self) -> Changes:
        return await self._queue.get()


class LoopWorld(World):
    """The register holds the bytes that the façade writes."""

    def make(self, name: str) -> Member:
        return LoopMember(self, name)

    def change(self) -> Change | None:
        value: Any = self.record
        if value is None:
            return None
        return Change(kind=ChangeKind.PUT, key="leader/desk", value=value, revision=self.revision)

    def run(self) -> Any:
        try:
            return super().run()
        finally:
            for member in self.members:
                member.end()  # type: ignore[attr-defined]
