"""Calls of the ports of this process, as every façade tells them: how many, how they ended, how long, how many now.

    class Jobs:
        @measured("jobs")
        async def get(self, …): …

Labels are the names of methods and the codes of errors, so there are few series. The numbers are the process's: a
façade needs no registry, and needs not load what shows them (`telemetry.process`).
"""

from __future__ import annotations

import functools
import time
from bisect import bisect_left
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

from groundplane.core.errors import GroundplaneError

P = ParamSpec("P")
T = TypeVar("T")

Method: TypeAlias = Callable[P, Coroutine[Any, Any, T]]

SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 30.0)
"""Upper bounds of the histogram of durations."""


class Calls:
    """The calls of one method of one port."""

    __slots__ = ("active", "counts", "operation", "outcomes", "port", "total_s")

    def __init__(self, port: str, operation: str) -> None:
        self.port = port
        self.operation = operation
        self.active = 0
        self.outcomes: dict[str, int] = {}
        self.counts = [0] * (len(SECONDS) + 1)
        self.total_s = 0.0

    def end(self, outcome: str, seconds: float) -> None:
        """One call ended."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total_s += seconds


_methods: dict[tuple[str, str], Calls] = {}


def methods() -> list[Calls]:
    """The methods that are measured, also those that were never called."""
    return list(_methods.values())


def calls_of(port: str, operation: str) -> Calls:
    """Where to count something that is no method: what a façade does for others, such as running their handlers."""
    return _methods.setdefault((port, operation), Calls(port, operation))


def measured(port: str) -> Callable[[Method[P, T]], Method[P, T]]:
    """Count and time a method of a façade. The outcome is `ok`, the code of a `GroundplaneError`, `cancelled`, or
    `broken` for any other exception.
    """

    def decorate(method: Method[P, T]) -> Method[P, T]:
        name = method.__name__
        calls = calls_of(port, name)

        @functools.wraps(method)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            began = time.perf_counter()
            calls.active += 1
            outcome = "ok"
            try:
                return await method(*args, **kwargs)
            except BaseException as error:
                outcome = _outcome(error)
                raise
            finally:
                calls.active -= 1
                calls.end(outcome, time.perf_counter() - began)

        return call

    return decorate


def _outcome(error: BaseException) -> str:
    if isinstance(error, GroundplaneError):
        return error.code
    return "broken" if isinstance(error, Exception) else "cancelled"


__all__ = ["SECONDS", "Calls", "calls_of", "measured", "methods"]
