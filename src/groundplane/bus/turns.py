"""So many at once, the others in the order in which they came: a semaphore that costs nothing while there is room."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """`if not turns.take(): await turns.wait()`, and after that one `give_back()`."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """A turn, where one is free."""
        if self._free:
            self._free -= 1
            return True
        return False

    async def wait(self) -> None:
        """A turn, as soon as it is one's own. Cancelled, it takes none."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():  # it had just been given one
                self.give_back()
            raise

    def give_back(self) -> None:
        """The turn is over: the next one has it."""
        while self._waiting:
            following = self._waiting.popleft()
            if not following.cancelled():
                following.set_result(None)
                return
        self._free += 1
