"""What this process holds: a gateway that has answered everything holds what it held before."""

from __future__ import annotations

import asyncio
import gc

from leaks import descriptors, threads

SLACK = (8, 2, 8)
"""Tasks, threads, descriptors: idle connections of clients come and go."""


def held() -> tuple[int, int, int]:
    """Tasks, threads and descriptors now."""
    gc.collect()
    return len(asyncio.all_tasks()), len(threads()), len(descriptors())


async def let_go(before: tuple[int, int, int]) -> bool:
    """Whether there are no more than before."""
    return all(now <= then + slack for now, then, slack in zip(held(), before, SLACK, strict=True))
