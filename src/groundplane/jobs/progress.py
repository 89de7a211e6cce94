"""How far a job is: pure functions of what its branches report.

One branch: `(hop * 100 + weight) / hops`, with weight 10 when an actor received it, 50 while it processes,
10 + 0.9 · p inside its handler, 100 when it completed. Two hops pass 5 25 50 55 75 100, one 10 50 100; that 100 belongs
to the recorded success alone, so every report is held below it.
"""

from __future__ import annotations

RECEIVED = 10.0
PROCESSING = 50.0
COMPLETED = 100.0
REPORTED_MAX = 99.0
"""What reports reach at most; only success is 100."""


def inside_handler(percent: float) -> float:
    """The weight of a handler that says it is `percent` (0–100) through; outside of that range it is bounded."""
    return RECEIVED + 0.9 * min(100.0, max(0.0, percent))


def of_branch(hop: int, hops: int, weight: float) -> float:
    """Progress in percent at 0-based `hop` of `hops`. The last hop's completion counts as its processing: the 100 that
    it stands for is set when the final state is recorded. What is out of range is bounded: a late or odd report is no
    reason to fail."""
    hops = max(1, hops)
    hop, weight = min(max(0, hop), hops - 1), min(COMPLETED, max(0.0, weight))
    if hop == hops - 1 and weight == COMPLETED:
        weight = PROCESSING
    return min(REPORTED_MAX, (hop * 100.0 + weight) / hops)


def steps(hop: int, hops: int, weight: float) -> int:
    """How many actors of the route are behind a branch."""
    return min(max(1, hops), max(0, hop) + (weight >= COMPLETED))


def steps_of_mean(progress: float, hops: int) -> int:
    """The same for a job with several branches: the steps that their mean has passed."""
    return int(progress * max(1, hops) / 100.0 + 1e-6)


def mean_after(mean: float, before: float, after: float, total: int) -> float:
    """The mean of `total` children after one of them went from `before` to `after`."""
    return min(100.0, mean + (after - before) / total)
