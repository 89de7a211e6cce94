"""An election as an App declares it: which handlers only the leader serves, what runs while somebody leads."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.core.fencing import Fence
from groundplane.core.names import check_name
from groundplane.kv import KV
from groundplane.services.leadership.leadership import Leadership, Listener
from groundplane.services.leadership.policies import Policy, PolicyName, chosen

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[[Fence], Awaitable[None]]
_GUARDED_BY = "__groundplane_election__"


class SingleActive:
    """An election by its name and policy; nothing is opened before `open`.

    desk = app.single_active("desk")

    @app.rpc("desk.place")
    @desk
    async def place(size: int) -> str: ...

    @desk.work
    async def quote(fence: Fence) -> None: ...

    async with desk.open(kv): ...
    """

    def __init__(self, name: str, policy: PolicyName | Policy = "balanced") -> None:
        self.name = check_name("name", name)
        self.policy = chosen(policy)
        self._works: list[Work] = []
        self._leadership: Leadership | None = None

    def __repr__(self) -> str:
        return f"<SingleActive {self.name} {'open' if self._leadership is not None else 'not open'}>"

    @property
    def leadership(self) -> Leadership:
        """This process's part in the election. `failed_precondition` unless it is open."""
        if self._leadership is None:
            raise FailedPrecondition(f"single_active: {self.name!r} is not open in this process; open it on a KV")
        return self._leadership

    def fence(self) -> Fence:
        """What a handler shows to the stores that it writes to. Raises `unavailable` (`not_active`)."""
        return self.leadership.fence()

    def __call__(self, handler: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """The handler as the leader alone serves it (`Leadership.guarded`); it keeps its name and signature."""
        _check_async("handler", handler)

        @functools.wraps(handler)
        async def serve(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.leadership.guarded(handler)(*args, **kwargs)

        setattr(serve, _GUARDED_BY, self.name)
        return serve

    def work(self, work: Work) -> Work:
        """Run it in each term of this process, cancelled with the term, until it returns. Returned unchanged."""
        _check_async("work", work)
        self._works.append(work)
        return work

    @asynccontextmanager
    async def open(
        self, kv: KV, *, member: str | None = None, on_event: Listener | None = None
    ) -> AsyncIterator[Leadership]:
        """Take part in the election until the block is left; then hand over. What a work raises ends the block."""
        if self._leadership is not None:
            raise FailedPrecondition(f"single_active: {self.name!r} is open already; one process is one member")
        async with Leadership.open(kv, self.name, policy=self.policy, member=member, on_event=on_event) as leadership:
            self._leadership = leadership
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(leadership.lead(work)) for work in self._works]
                    try:
                        yield leadership
                    finally:
                        for task in tasks:
                            task.cancel()
            finally:
                self._leadership = None


def election_of(handler: object) -> str | None:
    """The name of the election whose leader alone serves this handler; None where every instance does."""
    found: str | None = getattr(handler, _GUARDED_BY, None)
    return found


def _check_async(field: str, given: object) -> None:
    if not inspect.iscoroutinefunction(given):
        raise InvalidArgument(
            f"{field}: {given!r} is no async function; only such a one can be cancelled when its term ends"
        )
