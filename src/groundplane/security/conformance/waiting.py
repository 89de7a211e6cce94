"""Waiting for what expires."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

PATIENCE_S = 30.0


async def until_gone(look: Callable[[], Awaitable[Any]]) -> None:
    """Until `look` finds None; fails after 30 seconds."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = await look()
        if found is None:
            return
        assert time.monotonic() < deadline, f"still there after {PATIENCE_S} s: {found!r}"
        await asyncio.sleep(0.02)
