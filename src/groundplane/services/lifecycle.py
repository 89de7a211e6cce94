"""The life of a service: INITIALIZING → STARTING → STARTED → STOPPING → STOPPED, or FAILED at the end.

    life = ServiceLifecycle("quotes")
    life.on(LifeState.STARTING, connect)
    life.on(LifeState.STOPPING, drain)
    await life.start()
    …
    await life.stop()

The hooks of a state run when it is entered, one after the other; those of STOPPING and STOPPED in reverse order. A hook
that raises while starting ends the start: the hooks of STOPPING run, the end is FAILED, the error is raised. One that
raises while stopping does not keep the others from running; the end is FAILED then too.
"""

from __future__ import annotations

import asyncio
import enum
import inspect
from collections.abc import Awaitable, Callable, Sequence

from groundplane.core.errors import DeadlineExceeded, FailedPrecondition
from groundplane.telemetry.logs import get_logger

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
Hook = Callable[[], Awaitable[object] | object]
_log = get_logger("services")


class LifeState(enum.StrEnum):
    """Where a service is in its life."""

    INITIALIZING = "INITIALIZING"
    STARTING = "STARTING"
    STARTED = "STARTED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"

    @property
    def terminal(self) -> bool:
        """Whether nothing follows."""
        return self in (LifeState.STOPPED, LifeState.FAILED)


NEXT: dict[LifeState, frozenset[LifeState]] = {
    LifeState.INITIALIZING: frozenset({LifeState.STARTING, LifeState.STOPPED, LifeState.FAILED}),
    LifeState.STARTING: frozenset({LifeState.STARTED, LifeState.STOPPING}),
    LifeState.STARTED: frozenset({LifeState.STOPPING}),
    LifeState.STOPPING: frozenset({LifeState.STOPPED, LifeState.FAILED}),
    LifeState.STOPPED: frozenset(),
    LifeState.FAILED: frozenset(),
}
"""Every step that there is."""


class ServiceLifecycle:
    """The state of one service and the hooks of its states. `start` and `stop` may be called concurrently and again."""

    def __init__(
        self, name: str, *, start_timeout_s: float = START_TIMEOUT_S, stop_timeout_s: float = STOP_TIMEOUT_S
    ) -> None:
        self.name = name
        self.state = LifeState.INITIALIZING
        self.failure: BaseException | None = None
        self._start_timeout_s, self._stop_timeout_s = start_timeout_s, stop_timeout_s
        self._hooks: dict[LifeState, list[Hook]] = {state: [] for state in LifeState}
        self._entered = asyncio.Condition()
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<ServiceLifecycle {self.name} {self.state}>"

    def on(self, state: LifeState, hook: Hook) -> Hook:
        """Run `hook`, a function or coroutine function without arguments, when the state is entered. The hook again, so
        that it can decorate. `failed_precondition` once the state has been entered.
        """
        if state not in _reachable(self.state):
            raise FailedPrecondition(
                f"hook: {self.name} is {self.state}, and never enters {state} again; register hooks before the start",
                reason="lifecycle",
            )
        self._hooks[state].append(hook)
        return hook

    async def start(self) -> None:
        """INITIALIZING → STARTING → STARTED. Raises what a hook raised (the state is FAILED then), `deadline_exceeded`
        after 60 s, `failed_precondition` once it is stopping or has ended. A second call waits for the first.
        """
        if self.state in (LifeState.STOPPING, LifeState.STOPPED, LifeState.FAILED):
            raise self._refusal(LifeState.STARTING)
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name=f"{self.name}:start")
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            if self._starting.cancelled():  # by stop, not by our caller
                raise self._refusal(LifeState.STARTED) from None
            raise

    async def stop(self) -> None:
        """→ STOPPING → STOPPED, within 10 s; legal before the start, during it and again. Raises an `ExceptionGroup` of
        what hooks raised, when all have run. A second call waits for the first.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name=f"{self.name}:stop")
        await asyncio.shield(self._stopping)

    async def fail(self, error: BaseException) -> None:
        """Stop because of `error`, which is kept in `failure`; the end is FAILED. Nothing where it has ended; raises as
        `stop`.
        """
        if self.state.terminal:
            return
        self.failure = self.failure or error
        await self.stop()

    async def wait(self, *states: LifeState) -> LifeState:
        """Until the state is one of these, or terminal; which."""
        async with self._entered:
            await self._entered.wait_for(lambda: self.state in states or self.state.terminal)
            return self.state

    async def _start(self) -> None:
        limit = asyncio.timeout(self._start_timeout_s)
        try:
            async with limit:
                for state in (LifeState.STARTING, LifeState.STARTED):
                    await self._enter(state)
                    for hook in list(self._hooks[state]):
                        await _call(hook)
        except Exception as error:
            self.failure = self.failure or error
            if self._stopping is None:
                self._stopping = asyncio.create_task(self._shut(), name=f"{self.name}:stop")
            await asyncio.wait([self._stopping])
            if limit.expired():
                text = f"{self.name}: did not start within {self._start_timeout_s:g} s"
                raise DeadlineExceeded(text) from error
            raise

    async def _stop(self) -> None:
        starting = self._starting
        if starting is not None and not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
        await self._shut()

    async def _shut(self) -> None:
        if self.state is LifeState.INITIALIZING:
            await self._end()
            return
        await self._enter(LifeState.STOPPING)
        failures = await self._run_all(LifeState.STOPPING)
        expected = self.failure is not None
        if failures and not expected:
            self.failure = failures[0]
        await self._end()
        if failures and not expected:
            raise ExceptionGroup(f"{self.name}: stopping failed", failures)

    async def _end(self) -> None:
        state = LifeState.STOPPED if self.failure is None else LifeState.FAILED
        await self._enter(state)
        await self._run_all(state)

    async def _run_all(self, state: LifeState) -> list[Exception]:
        """Each hook gets its turn within the time of a stop; what they raised."""
        failures: list[Exception] = []
        hooks: Sequence[Hook] = self._hooks[state][::-1]
        deadline = asyncio.get_running_loop().time() + self._stop_timeout_s
        for hook in hooks:
            try:
                async with asyncio.timeout_at(deadline):
                    await _call(hook)
            except Exception as error:  # noqa: BLE001 - the others get their turn; the caller raises them together
                _log.error("lifecycle_hook_failed", service=self.name, state=state.value, error=repr(error))
                failures.append(error)
        return failures

    async def _enter(self, state: LifeState) -> None:
        if state not in NEXT[self.state]:
            raise self._refusal(state)
        _log.info("lifecycle", service=self.name, before=self.state.value, state=state.value)
        async with self._entered:
            self.state = state
            self._entered.notify_all()

    def _refusal(self, state: LifeState) -> FailedPrecondition:
        return FailedPrecondition(
            f"{self.name}: is {self.state} and cannot become {state}; make a new one",
            reason="lifecycle",
            details={"state": self.state.value, "wanted": state.value},
        )


def _reachable(state: LifeState) -> set[LifeState]:
    found: set[LifeState] = set()
    pending = [state]
    while pending:
        new = NEXT[pending.pop()] - found
        found |= new
        pending += new
    return found


async def _call(hook: Hook) -> None:
    result = hook()
    if inspect.isawaitable(result):
        await result


__all__ = ["NEXT", "Hook", "LifeState", "ServiceLifecycle"]
