"""Elections in virtual time: members with clocks of their own speed, pauses, cuts, lost and late messages.

The members are the shipped `Election`; the store is a register with compare-and-set; a second store takes effects with
a fence. The checker looks at every event and knows true time, which no member does.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from groundplane.core.fencing import Fence
from groundplane.services.leadership.election import Election, ElectionEvent, Read, Record, Wait, Write
from groundplane.services.leadership.policies import CLOCK_RATE_ERROR, Policy

POLICY = Policy(lease_s=1.5)
TROUBLE_S = 9.0
"""How long there are faults; after it the members have `CALM_S` to agree."""
CALM_S = 5.0


class TwoLed(AssertionError):
    """The checker saw what must never be."""


@dataclass
class Tally:
    """What schedules have exercised."""

    terms: int = 0
    effects: int = 0
    effects_refused: int = 0
    own_stops: int = 0
    long_pauses: int = 0
    releases: int = 0
    lost_answers: int = 0

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class World:
    """True time, what is to happen, and the two stores."""

    def __init__(self, seed: int, members: int = 3) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.now = 0.0
        self.tally = Tally()
        self.members: list[Member] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        # the register
        self.revision = 0
        self.record: Record | None = None
        # the store of effects
        self.newest_term = 0
        self.applied: list[tuple[int, str]] = []
        self.term_of: dict[int, str] = {}
        self.members = [self.make(f"m{number}") for number in range(members)]

    def make(self, name: str) -> Member:
        return Member(self, name)

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (max(when, self.now), next(self._numbers), what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.at(self.now + seconds, what)

    @property
    def calm(self) -> bool:
        return self.now >= TROUBLE_S

    def trouble(self, seconds: float) -> float:
        """So long, but no longer than there is trouble."""
        return max(0.0, min(seconds, TROUBLE_S + 0.2 - self.now))

    def run(self) -> Tally:
        for member in self.members:
            self.after(self.random.uniform(0, 0.5), member.start)
        while self._agenda and self._agenda[0][0] < TROUBLE_S + CALM_S:
            self.now, _, what = heapq.heappop(self._agenda)
            what()
            self.check()
        active = [one.name for one in self.members if one.acts]
        if len(active) != 1:
            raise TwoLed(f"seed {self.seed}: after {CALM_S} s without faults {active} are active")
        return self.tally

    def check(self) -> None:
        active = [one for one in self.members if one.acts]
        if len(active) > 1:
            raise TwoLed(f"seed {self.seed}, at {self.now:.3f} s: {[(one.name, one.term) for one in active]}")

    def write(self, expected: int, record: Record) -> int | None:
        """The new revision, or None where another is the newest."""
        if expected != self.revision:
            return None
        self.revision, self.record = self.revision + 1, record
        for member in self.members:
            member.tell_later()
        return self.revision

    def admits(self, fence: Fence) -> bool:
        """The fence of the store of effects, as those of the product are: the highest term seen, and none below it."""
        return fence.term >= self.newest_term

    def effect(self, fence: Fence) -> None:
        if not self.admits(fence):
            self.tally.effects_refused += 1
            return
        self.newest_term = max(self.newest_term, fence.term)
        if self.applied and self.applied[-1][0] > fence.term:
            raise TwoLed(f"seed {self.seed}: an effect of term {fence.term} after one of {self.applied[-1][0]}")
        self.applied.append((fence.term, fence.name))
        self.tally.effects += 1


class Member:
    """A process around an `Election`: does what `step` says, one thing at a time, and can be stopped and cut off."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        chance = world.random
        self._rate = chance.uniform(1 - CLOCK_RATE_ERROR, 1 + CLOCK_RATE_ERROR)
        if chance.random() < 0.3:
            self._rate = chance.choice([1 - CLOCK_RATE_ERROR, 1 + CLOCK_RATE_ERROR])
        self._offset = chance.uniform(0, 1e5)
        self.paused = self.cut = False
        self._missed: list[Callable[[], None]] = []
        self._held_back: list[Callable[[], None]] = []
        self._busy = 0
        self._wake = 0
        self.begin()

    def begin(self) -> None:
        """The process starts, again perhaps: it knows nothing of what was before."""
        incarnation = f"{self.name}-{self.world.seed}-{self.world.random.random()}"
        self.election = Election(self.name, incarnation, POLICY, self.clock, self._noted)

    @property
    def term(self) -> int | None:
        return self.election.term

    def clock(self) -> float:
        return self._offset + self.world.now * self._rate

    @property
    def acts(self) -> bool:
        return not self.paused and self.term is not None

    def start(self) -> None:
        self.world.after(self.world.random.uniform(0, 2), self._next_trouble)
        self.world.after(self.world.random.uniform(0, 0.2), self._work)
        self.turn()

    def turn(self) -> None:
        """Do the next step, unless one is under way."""
        if self._busy:
            return
        step = self.election.step()
        if isinstance(step, Wait):
            self._wake += 1
            number = self._wake
            true = (step.until - self._offset) / self._rate
            self.world.at(
                max(true + 1e-6, self.world.now + 0.002),
                lambda: self._here(lambda: self.turn() if number == self._wake else None),
            )
            return
        self._wake += 1
        self._busy = attempt = self._wake
        if isinstance(step, Write):
            self.election.sent(step)
        if self._pauses_here(0.02):  # between reading the clock and sending
            self._here(lambda: self._send(step, attempt))
        else:
            self._send(step, attempt)
        patience = self.election.policy.renew_s / self._rate
        self.world.after(patience, lambda: self._here(lambda: self._gave_up(step, attempt)))

    def tell_later(self) -> None:
        """The watch brings what the register has by then; messages of one connection do not overtake each other."""
        revision, record = self.world.revision, self.world.record
        delay = self.world.random.expovariate(200)
        if self.world.random.random() < 0.05:
            delay += self.world.trouble(self.world.random.uniform(0, 2))
        self.world.after(delay, lambda: self._over_network(lambda: self._saw(revision, record)))

    def _saw(self, revision: int, record: Record | None) -> None:
        self.election.saw(revision, record)
        self.turn()

    def _send(self, step: Read | Write, attempt: int) -> None:
        """To the store and back, unless something is lost or late on the way."""
        chance, world = self.world.random, self.world

        def at_the_store() -> None:
            if isinstance(step, Read):
                seen = (world.revision or None, world.record)
                answer = lambda: self._read(attempt, *seen)  # noqa: E731
            else:
                revision = world.write(step.expected or 0, step.record)
                answer = lambda: self._written(step, attempt, revision)  # noqa: E731
            if not world.calm and chance.random() < 0.05:
                world.tally.lost_answers += 1
                return
            world.after(self._latency(), lambda: self._over_network(answer))

        if world.calm or chance.random() >= 0.05:
            world.after(self._latency(), lambda: self._over_network(at_the_store, at_store=True))

    def _latency(self) -> float:
        chance = self.world.random
        if not self.world.calm and chance.random() < 0.05:
            return self.world.trouble(chance.uniform(0, 4))  # a write may arrive long after its sender has given it up
        return chance.expovariate(300)

    def _over_network(self, what: Callable[[], None], *, at_store: bool = False) -> None:
        if self.cut:
            if self.world.random.random() < 0.5:
                self._held_back.append(lambda: self._over_network(what, at_store=at_store))
        elif at_store:
            what()
        else:
            self._here(what)

    def _here(self, what: Callable[[], None]) -> None:
        """In this process: later, where it is stopped."""
        if self.paused:
            self._missed.append(what)
        else:
            what()

    def _read(self, attempt: int, revision: int | None, record: Record | None) -> None:
        if self._busy == attempt:
            self._busy = 0
            self.election.saw(revision, record, read=True)
            self.turn()

    def _written(self, step: Write, attempt: int, revision: int | None) -> None:
        if self._busy == attempt:  # the shell has given up waiting otherwise, and the answer is lost
            self._busy = 0
            if revision is None:
                self.election.refused(step)
            else:
                self.election.written(step, revision)
            self.turn()

    def _gave_up(self, step: Read | Write, attempt: int) -> None:
        if self._busy == attempt:
            self._busy = 0
            if isinstance(step, Write):
                self.election.unanswered(step)
            else:
                self.election.unreachable()
            self.turn()

    def _work(self) -> None:
        """The handler: looks whether it may act, acts, and may be stopped between the two."""
        self.world.after(self.world.random.uniform(0.02, 0.5), self._work)
        term = self.election.term
        if self.paused or term is None:
            return
        self.world.check()
        fence = Fence(name="sim", term=term)

        def act() -> None:
            self.world.after(self._latency(), lambda: self.world.effect(fence))

        self._pauses_here(0.03)
        self._here(act)

    def _pauses_here(self, probability: float) -> bool:
        if self.world.calm or self.paused or self.world.random.random() >= probability:
            return False
        self._pause()
        return True

    def _pause(self) -> None:
        seconds = self.world.random.choice([0.1, 0.5, 1.4, 1.6, 3.0]) * self.world.random.uniform(0.5, 1.5)
        self.world.tally.long_pauses += seconds > POLICY.lease_s
        self.paused = True
        self.world.after(self.world.trouble(seconds), self._resume)

    def _resume(self) -> None:
        self.paused = False
        missed, self._missed = self._missed, []
        if self.world.random.random() < 0.5:
            self.world.random.shuffle(missed)
        self.world.check()  # the first instruction after it may be one that looks whether it may act
        for what in missed:
            self._here(what)

    def _heal(self) -> None:
        self.cut = False
        held, self._held_back = self._held_back, []
        for what in held:
            self.world.after(self.world.random.expovariate(100), what)
        self.tell_later()

    def _next_trouble(self) -> None:
        if self.world.calm:
            return
        chance = self.world.random
        self.world.after(chance.expovariate(0.8), self._next_trouble)
        kind = chance.choice(["pause", "cut", "release", "restart"])
        if kind == "pause" and not self.paused:
            self._pause()
        elif kind == "cut" and not self.cut:
            self.cut = True
            seconds = chance.choice([0.2, 1.0, 2.0, 4.0]) * chance.uniform(0.5, 1.5)
            self.world.after(self.world.trouble(seconds), self._heal)
        elif kind == "release" and not self.paused and not self._busy:
            self._release()
        elif kind == "restart" and chance.random() < 0.5:
            self._restart()

    def _release(self) -> None:
        write = self.election.release()
        if write is None:
            return
        self.world.tally.releases += 1
        self.election.rest(POLICY.lease_s)
        self._wake += 1
        self._busy = attempt = self._wake
        self.election.sent(write)
        self._send(write, attempt)
        self.world.after(1.0, lambda: self._here(lambda: self._gave_up(write, attempt)))

    def _restart(self) -> None:
        """Killed, and another process of the same name."""
        self.paused, self._missed = False, []
        self._wake += 1
        self._busy = 0
        self.begin()
        self.turn()

    def _noted(self, event: ElectionEvent) -> None:
        if event.kind == "LeaderElected" and event.leader == self.name and self.term is not None:
            holder = self.world.term_of.setdefault(self.term, self.name)
            if holder != self.name:
                raise TwoLed(f"seed {self.world.seed}: term {event.term} is of {holder} and of {self.name}")
            self.world.tally.terms += 1
        if event.kind == "LeaderLost" and event.leader == self.name and event.reason == "lease_ended":
            self.world.tally.own_stops += 1


@dataclass
class Campaign:
    """Many schedules."""

    first_seed: int = 1
    world: type[World] = World
    tally: Tally = field(default_factory=Tally)

    def run(self, schedules: int) -> Tally:
        for seed in range(self.first_seed, self.first_seed + schedules):
            self.tally.add(self.world(seed, members=2 + seed % 3).run())
        return self.tally
