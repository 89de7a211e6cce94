"""Waiting for what must happen, things at once, and names that nobody else has.

job = await eventually(lambda: jobs.get(job_id), timeout_s=5)
results = await together(10, lambda n: queues.send(message(n)))
queue = unique("orders")
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")

PATIENCE_S = 10.0
"""How long a test waits for what must happen, unless it says otherwise."""

_FIRST_LOOK_S, _LOOK_S_MAX = 0.001, 0.1


class NotInTime(AssertionError):
    """What was waited for did not come; `last` is what was there instead, an exception where the look itself failed."""

    def __init__(self, what: str, timeout_s: float, last: object) -> None:
        super().__init__(f"not within {timeout_s:g} s: {what}; the last look gave {last!r}")
        self.last = last


async def eventually(
    condition: Callable[[], Awaitable[T]] | Callable[[], T],
    what: str = "",
    *,
    timeout_s: float = PATIENCE_S,
    tolerate: tuple[type[Exception], ...] = (),
) -> T:
    """The first true value of a condition, asynchronous or not. Raises `NotInTime`, never waits longer than that.

    Exceptions of the `tolerate`d types count as "not yet"; the last of them is the cause of `NotInTime`. Looks soon at
    first, then every 100 ms.
    """
    pause_s, deadline = _FIRST_LOOK_S, time.monotonic() + timeout_s
    while True:
        last: object
        limit = asyncio.timeout(max(0.01, deadline - time.monotonic()))
        try:
            async with limit:
                found = condition()
                last = await found if inspect.isawaitable(found) else found
            if last:
                return cast(T, last)
        except TimeoutError as error:
            if not limit.expired():
                raise
            last = error
        except tolerate as error:
            last = error
        if time.monotonic() + pause_s > deadline:
            raise NotInTime(what or _name(condition), timeout_s, last) from (
                last if isinstance(last, Exception) else None
            )
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LOOK_S_MAX)


def wait_until(condition: Callable[[], T], what: str = "", *, timeout_s: float = PATIENCE_S) -> T:
    """`eventually` for synchronous code."""
    pause_s, deadline = _FIRST_LOOK_S, time.monotonic() + timeout_s
    while not (last := condition()):
        if time.monotonic() + pause_s > deadline:
            raise NotInTime(what or _name(condition), timeout_s, last)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LOOK_S_MAX)
    return last


async def together(count: int, call: Callable[[int], Awaitable[T]]) -> list[T | BaseException]:
    """`call(0)` … `call(count - 1)`, begun in the same step of the loop; the outcome of each, errors included.

    Cancelled, it cancels them all and waits for their ends.
    """
    begin = asyncio.Event()

    async def one(number: int) -> T:
        await begin.wait()
        return await call(number)

    tasks = [asyncio.create_task(one(number)) for number in range(count)]
    begin.set()
    try:
        return await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_numbers = itertools.count(1)
_run = secrets.token_hex(4)
_lock = threading.Lock()


def unique(prefix: str = "t") -> str:
    """`<prefix>-<process>-<number>`: no other call gives the same, in any thread, process or run. ASCII, lower case
    where the prefix is, short enough for the name of a queue, a schema or a bucket.
    """
    with _lock:
        return f"{prefix}-{_run}{os.getpid():x}-{next(_numbers)}"


def _name(condition: Callable[[], object]) -> str:
    try:
        return inspect.getsource(condition).strip().splitlines()[0]
    except (OSError, TypeError):
        return repr(condition)
