"""The checker of a store's log notices each broken promise, and names who broke it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from groundplane.jobs.port import JobEvent
from groundplane.testing.checkers import BrokenPromise, EventLog, History


def log(*lines: tuple[int, str, str, dict[str, Any]]) -> EventLog:
    return EventLog(JobEvent(id=n, job_id=job, kind=kind, data=data, created_at=n) for n, job, kind, data in lines)


CREATED = (1, "a", "created", {"state": "pending", "progress": 0.0})
RUNNING = (2, "a", "progress", {"state": "running", "progress": 50.0})
DONE = (3, "a", "succeeded", {"state": "succeeded", "progress": 100.0})
LATE = (4, "a", "late", {"state": "succeeded"})


def test_a_log_that_keeps_every_promise_passes() -> None:
    good = log(CREATED, RUNNING, DONE, LATE)
    good.check_ids_rise()
    good.check_one_end(["a"])
    good.check_terminal_states_never_change()
    good.check_progress_never_decreases()


@pytest.mark.parametrize(
    ("broken", "check", "witness"),
    [
        (log(CREATED, CREATED), EventLog.check_ids_rise, "1"),
        (log(RUNNING, CREATED), EventLog.check_ids_rise, "1"),
        (log(CREATED, RUNNING), lambda one: one.check_one_end(["a"]), "a (0)"),
        (log(CREATED, DONE, (5, "a", "failed", {})), lambda one: one.check_one_end(["a"]), "a (2)"),
        (log(CREATED, DONE), lambda one: one.check_one_end([]), "a"),
        (log(DONE, (4, "a", "late", {"state": "failed"})), EventLog.check_terminal_states_never_change, "a"),
        (log(DONE, (4, "a", "progress", {"state": "running"})), EventLog.check_terminal_states_never_change, "a"),
        (log((1, "a", "progress", {"state": "failed"}), DONE), EventLog.check_terminal_states_never_change, "a"),
        (log(RUNNING, (3, "a", "progress", {"progress": 49.9})), EventLog.check_progress_never_decreases, "a"),
    ],
)
def test_a_broken_promise_is_noticed_with_its_witness(
    broken: EventLog, check: Callable[[EventLog], None], witness: str
) -> None:
    with pytest.raises(BrokenPromise) as caught:
        check(broken)
    assert caught.value.ids == [witness]


def test_attempts_may_jump_over_what_was_not_noted_but_never_fall() -> None:
    history = History()
    for attempt in (1, 3, 3):
        history.attempt("m", attempt)
    history.check_attempts_never_fall()
    history.attempt("m", 2)
    with pytest.raises(BrokenPromise) as caught:
        history.check_attempts_never_fall()
    assert caught.value.ids == ["m"]
