"""A tracker of speed: latencies and throughput of operations, each beside the raw client in the same run.

tracker = Tracker()
for _ in range(1000):
    with tracker.measure("put", "ours"):
        await blobs.put(key, data)
    with tracker.measure("put", "obstore", peer=True):
        await obstore.put_async(store, key, data)
print(tracker.markdown())
losses = tracker.losses(json.loads(Path("baseline.json").read_text()), loss=0.1)
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from groundplane.core.errors import InvalidArgument


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one subject did of one operation: how often, how many a second of the time that it took, percentiles of the
    latency in ms. `ratio` is the throughput to that of the peer in the same run, `latency_ratio` the median to its.
    """

    operation: str
    subject: str
    peer: bool
    count: int
    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    ratio: float | None = None
    latency_ratio: float | None = None


class Tracker:
    """Collects measurements. For one loop or one thread."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, str], list[tuple[float, int]]] = {}
        self._spans: dict[tuple[str, str], float] = {}
        self._peers: set[str] = set()

    @contextmanager
    def measure(self, operation: str, subject: str, *, count: int = 1, peer: bool = False) -> Iterator[None]:
        """Time the block, which does the operation `count` times. One that raises is not noted."""
        began = time.perf_counter()
        yield
        self.note(operation, subject, time.perf_counter() - began, count=count, peer=peer)

    def note(self, operation: str, subject: str, seconds: float, *, count: int = 1, peer: bool = False) -> None:
        """A measurement that was taken elsewhere."""
        if not seconds >= 0 or count < 1:
            raise InvalidArgument(f"seconds: {seconds!r} for {count!r} operations is no measurement")
        self._taken.setdefault((operation, subject), []).append((seconds, count))
        if peer:
            self._peers.add(subject)

    async def load(
        self,
        operation: str,
        subject: str,
        call: Callable[[], Awaitable[object]],
        *,
        count: int,
        callers: int = 1,
        peer: bool = False,
    ) -> None:
        """Call it `count` times from so many callers at once. The throughput is that of the whole load."""
        import asyncio

        left = iter(range(count))

        async def caller() -> None:
            for _ in left:
                with self.measure(operation, subject, peer=peer):
                    await call()

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
        key = (operation, subject)
        self._spans[key] = self._spans.get(key, 0.0) + time.perf_counter() - began

    def results(self) -> list[Result]:
        """Of each operation and subject, in the order in which they were first seen."""
        plain = [self._result(operation, subject) for operation, subject in self._taken]
        return [_beside(one, plain) for one in plain]

    def markdown(self) -> str:
        """A table, the ratio to the peer in the last column."""
        lines = ["| operation | | a second | p50 ms | p95 ms | p99 ms | to the peer |", "|---|---|---|---|---|---|---|"]
        for one in self.results():
            ratio = f"{one.ratio:.3g} ×" if one.ratio is not None else ""
            lines.append(
                f"| {one.operation} | {one.subject} | {one.per_s:,.4g} | {one.p50_ms:.3g} | {one.p95_ms:.3g} | "
                f"{one.p99_ms:.3g} | {ratio} |"
            )
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """All results, for programs and as the baseline of later runs."""
        return json.dumps(msgspec.to_builtins(self.results()), indent=1) + "\n"

    def losses(self, baseline: Sequence[Mapping[str, Any]], *, loss: float) -> list[str]:
        """Where a ratio is worse than in the baseline (what `to_json` gave) by more than `loss` (0.1: a tenth)."""
        before = {(one["operation"], one["subject"]): one["ratio"] for one in baseline if one.get("ratio")}
        found = []
        for one in self.results():
            was = before.get((one.operation, one.subject))
            if was is not None and one.ratio is not None and one.ratio < was * (1 - loss):
                found.append(f"{one.operation}, {one.subject}: {one.ratio:.3g} × its peer, was {was:.3g}")
        return found

    def _result(self, operation: str, subject: str) -> Result:
        taken = self._taken[operation, subject]
        count = sum(number for _, number in taken)
        spent = self._spans.get((operation, subject)) or sum(seconds for seconds, _ in taken)
        each = sorted(seconds / number * 1000 for seconds, number in taken)
        return Result(
            operation=operation,
            subject=subject,
            peer=subject in self._peers,
            count=count,
            per_s=count / spent if spent else math.inf,
            p50_ms=_percentile(each, 0.5),
            p95_ms=_percentile(each, 0.95),
            p99_ms=_percentile(each, 0.99),
            max_ms=each[-1],
        )


def _beside(one: Result, results: Sequence[Result]) -> Result:
    peer = next((other for other in results if other.peer and other.operation == one.operation), None)
    if one.peer or peer is None:
        return one
    return msgspec.structs.replace(
        one,
        ratio=one.per_s / peer.per_s if peer.per_s else None,
        latency_ratio=one.p50_ms / peer.p50_ms if peer.p50_ms else None,
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that is not below `share` of all (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
