"""Something that is opened with its first use: a process that never wants it never pays for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

from groundplane.core.errors import Closed
from groundplane.core.lifecycle import Lifecycle

T = TypeVar("T")


class Lazily(Generic[T]):
    """What `opening` makes, entered and left in one task of its own. May be used concurrently."""

    def __init__(self, name: str, opening: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._opening = opening
        self._lifecycle = Lifecycle(name)
        self._opened: asyncio.Future[T] | None = None

    async def get(self) -> T:
        """It, opened where it is not yet: all who wait then get its error, and the next call tries again. `closed`."""
        self._lifecycle.check_open()
        if self._opened is None:
            self._opened = asyncio.get_running_loop().create_future()
            self._lifecycle.spawn(self._keep(self._opened), name="keep")
        return await asyncio.shield(self._opened)

    async def aclose(self) -> None:
        """Close it, if it was opened. Idempotent, ≤ 10 s."""
        await self._lifecycle.aclose()

    async def _keep(self, opened: asyncio.Future[T]) -> None:
        try:
            async with self._opening() as found:
                opened.set_result(found)
                await self._lifecycle.stopping.wait()
        except BaseException as error:
            if opened.done():
                raise
            self._opened = None
            failure = error if isinstance(error, Exception) else Closed(f"{self._lifecycle.name}: is closed")
            opened.set_exception(failure)
            opened.exception()  # whoever waited may be gone
            if not isinstance(error, Exception):
                raise


__all__ = ["Lazily"]
