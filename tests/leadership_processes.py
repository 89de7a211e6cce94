"""Contenders in processes of their own, and the judge of what they noted."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundplane.services.leadership.leadership import lease_clock
from groundplane.testing import eventually

_CHILD = Path(__file__).with_name("leadership_child.py")
PATIENCE_S = 60.0


class TwoActive(AssertionError):
    """What must never be."""


@dataclass(frozen=True)
class Reign:
    """Proven activity: in this term the member was active at both ends, and a term is never taken up again."""

    term: int
    member: str
    first: float
    last: float


class Member:
    """One process, or what is left of it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, journal: Path) -> None:
        self.name, self.process, self._path = name, process, journal

    def journal(self) -> list[list[Any]]:
        """What it has noted; a line that a SIGKILL has cut off is none."""
        if not self._path.exists():
            return []
        lines = self._path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def looks(self) -> list[tuple[float, float, int]]:
        return [(one[0], one[1], one[2]) for one in self.journal() if not isinstance(one[0], str)]

    def said(self, word: str) -> list[list[Any]]:
        return [one for one in self.journal() if one[0] == word]

    def leads(self) -> bool:
        if self.process.returncode is not None:
            return False
        looks = self.looks()
        return bool(looks) and looks[-1][2] > 0 and lease_clock() - looks[-1][1] < 0.5

    def reigns(self) -> list[Reign]:
        found = []
        for term, looks in itertools.groupby(self.looks(), key=lambda look: look[2]):
            held = list(looks)
            if term:
                found.append(Reign(term, self.name, first=held[0][1], last=held[-1][0]))
        return found

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


class Contenders:
    """All that have ever stood in one election."""

    def __init__(self, url: str, state: Path, bucket: str, policy: str) -> None:
        self._arguments = (url, str(state), bucket)
        self._policy, self._folder = policy, state
        self._numbers = itertools.count(1)
        self.all: list[Member] = []

    async def add(self, url: str | None = None) -> Member:
        """One more; with `url`, by another way to the store."""
        name = f"m{next(self._numbers)}"
        journal = self._folder / f"{name}.jsonl"
        own_url, *rest = self._arguments
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(_CHILD), url or own_url, *rest, name, self._policy, str(journal), env=dict(os.environ)
        )
        member = Member(name, process, journal)
        self.all.append(member)
        return member

    async def start(self, count: int) -> None:
        for _ in range(count):
            await self.add()
        await self.ready()

    async def ready(self) -> None:
        living = [one for one in self.all if one.process.returncode is None]
        await eventually(lambda: all(one.said("ready") for one in living), "all are ready", timeout_s=PATIENCE_S)

    async def leader(self, *, besides: Member | None = None) -> Member:
        """The one that leads, as soon as one does."""

        def found() -> Member | None:
            return next((one for one in self.all if one is not besides and one.leads()), None)

        member = await eventually(found, "one leads", timeout_s=PATIENCE_S)
        assert member is not None
        return member

    async def reign_after(self, term: int) -> Reign:
        """The first of a later term, as soon as there is one."""

        def found() -> Reign | None:
            return next((one for one in self.reigns() if one.term > term), None)

        reign = await eventually(found, f"a reign after {term}", timeout_s=PATIENCE_S)
        assert reign is not None
        return reign

    async def effect_after(self, term: int) -> None:
        """Until one of a later term was stored: `term` is refused from now on."""
        await eventually(
            lambda: any(one > term for _, one in self.effects()), f"an effect after {term}", timeout_s=PATIENCE_S
        )

    def reigns(self) -> list[Reign]:
        """In the order of terms."""
        return sorted((reign for one in self.all for reign in one.reigns()), key=lambda reign: reign.term)

    def effects(self) -> list[tuple[int, int]]:
        """Revision and term of what leaders have stored, in the order of revisions."""
        return sorted((one[2], one[1]) for member in self.all for one in member.said("effect"))

    def judge(self) -> None:
        """Raise where two were active at once, a term was had twice, or an effect came after one of a newer term."""
        judge(self.reigns())
        effects = self.effects()
        terms = [term for _, term in effects]
        assert terms == sorted(terms), f"an effect of an older term was stored after one of a newer: {effects}"


def judge(reigns: list[Reign]) -> None:
    """The history checker: reigns of different terms do not overlap, and later terms come later."""
    ordered = sorted(reigns, key=lambda reign: reign.first)
    for before, after in itertools.pairwise(ordered):
        if before.last >= after.first:
            raise TwoActive(f"two were active at once: {before} and {after}")
        assert before.term < after.term, f"terms do not rise: {before} and {after}"


@asynccontextmanager
async def contenders(url: str, state: Path, bucket: str, count: int, policy: str) -> AsyncIterator[Contenders]:
    """So many processes; killed when the block ends."""
    them = Contenders(url, state, bucket, policy)
    try:
        await them.start(count)
        yield them
    finally:
        for one in them.all:
            await one.kill()
            getattr(one.process, "_transport").close()  # noqa: B009 - asyncio has no public way to close its pipes
