"""A member of an election in a process of its own: `python leadership_child.py URL STATE BUCKET MEMBER POLICY JOURNAL`.

It notes in its journal, one JSON array a line, each written at once:
["ready"], [before, after, term] around each look at its own leadership (seconds of the machine's clock that goes on
while a process is stopped; term 0 for a standby), ["effect", term, revision] and ["refused", term] for what it stores
under its terms. A term that it has lost it shows until that is answered: a handler that did not hear of it would do so.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack

from groundplane.core.errors import Conflict, DeadlineExceeded, GroundplaneError, Unavailable
from groundplane.core.fencing import Fence
from groundplane.kv import KV
from groundplane.services.leadership import Leadership, Policy
from groundplane.services.leadership.leadership import lease_clock
from groundplane.testing import eventually

LOOK_S = 0.01


class Journal:
    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, *values: object) -> None:
        os.write(self._file, json.dumps(values).encode() + b"\n")


async def store(kv: KV, journal: Journal, fence: Fence, member: str) -> bool:
    """Whether the store has answered."""
    try:
        async with asyncio.timeout(1):
            revision = await kv.put(f"effects/{fence.term}/{member}", str(fence.term).encode(), fence=fence)
    except Conflict as error:
        journal.note("refused" if error.reason == "term_old" else error.reason, fence.term)
    except (GroundplaneError, TimeoutError):
        return False
    else:
        journal.note("effect", fence.term, revision)
    return True


async def main(url: str, state: str, bucket: str, member: str, policy: str, path: str) -> None:
    journal = Journal(path)
    chosen = Policy(lease_s=float(policy)) if policy[0].isdigit() else policy
    async with AsyncExitStack() as stack:
        kv = await eventually(
            lambda: stack.enter_async_context(
                KV.open(url, state=state, bucket=bucket, namespace="election", upgrade=True)
            ),
            "the store is opened",
            timeout_s=30,
            tolerate=(Unavailable, DeadlineExceeded),
        )
        async with Leadership.open(kv, "desk", member=member, policy=chosen) as leadership:  # type: ignore[arg-type]
            journal.note("ready")
            last = looks = 0
            lost: list[int] = []
            while True:
                before = lease_clock()
                term = leadership.term or 0
                journal.note(before, lease_clock(), term)
                if last and term != last:
                    lost.append(last)
                if term != last or looks % 20 == 0:
                    lost = [one for one in lost if not await store(kv, journal, Fence("desk", one), member)]
                    if term:
                        await store(kv, journal, Fence("desk", term), member)
                last, looks = term, looks + 1
                await asyncio.sleep(LOOK_S)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
