"""What the log of a job tells, folded into what a page draws: its hops, its children, its questions, its last events.

A pure fold over events, in any number of steps; bounded however long the log is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from groundplane.jobs.port import Job, JobEvent, JobState

EVENTS_SHOWN = 100
CHILDREN_MAX = 256
ENVELOPES_MAX = 2000
_TROUBLE = {"retry", "dead_letter"}


@dataclass
class Hop:
    """One actor of the route, and what happened there. Times are Unix milliseconds."""

    index: int
    actor: str
    state: str = "waiting"
    received: int = 0
    completed: int = 0
    retries: int = 0
    dead: int = 0
    began_at: int | None = None
    ended_at: int | None = None
    message: str = ""

    @property
    def took_s(self) -> float | None:
        """From the first receipt to the last completion."""
        if self.began_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.began_at) / 1000


@dataclass
class Child:
    """One branch of a fan-out."""

    envelope_id: str
    index: int
    state: str = "pending"
    actor: str = ""
    message: str = ""


@dataclass
class Story:
    """The fold. `add` events in order, then `hops` for a job."""

    children_total: int = 0
    children: dict[str, Child] = field(default_factory=dict)
    events: deque[JobEvent] = field(default_factory=lambda: deque(maxlen=EVENTS_SHOWN))
    seen: int = 0
    skipped: bool = False
    _hops: dict[int, Hop] = field(default_factory=dict)
    _told: set[tuple[int, str, str]] = field(default_factory=set)
    _where: dict[str, int] = field(default_factory=dict)

    def add(self, event: JobEvent) -> None:
        """Take the next event."""
        self.seen = event.id
        self.events.append(event)
        data = event.data
        if event.kind == "progress" and isinstance(data.get("hop"), int):
            self._progress(event, data)
        elif event.kind == "split":
            self._split(data)
        elif event.kind == "branch":
            self._branch(data)
        elif event.kind in _TROUBLE:
            hop = self._hops.get(self._where.get(str(data.get("envelope_id")), -1))
            if hop is not None:
                hop.retries += event.kind == "retry"
                hop.dead += event.kind == "dead_letter"
                hop.ended_at = event.created_at

    def hops(self, job: Job) -> list[Hop]:
        """The whole route: what was passed, where the job is, what is to come."""
        last = max([*self._hops, len(job.route) - 1], default=-1)
        drawn = []
        for index in range(last + 1):
            planned = job.route[index] if index < len(job.route) else ""
            hop = self._hops.get(index) or Hop(index=index, actor=planned)
            hop.state = _state(hop, job, behind=any(one.received for at, one in self._hops.items() if at > index))
            drawn.append(hop)
        return drawn

    def _progress(self, event: JobEvent, data: dict[str, Any]) -> None:
        index, envelope, status = data["hop"], str(data.get("envelope_id")), data.get("status") or ""
        hop = self._hops.setdefault(index, Hop(index=index, actor=str(data.get("actor", ""))))
        hop.actor = str(data.get("actor") or hop.actor)
        hop.message = str(data.get("message") or "")
        if hop.began_at is None:
            hop.began_at = event.created_at
        if status and len(self._told) < ENVELOPES_MAX and (index, envelope, status) not in self._told:
            self._told.add((index, envelope, status))
            hop.received += status == "received"
            hop.completed += status == "completed"
        if status == "completed":
            hop.ended_at = event.created_at
        if len(self._where) < ENVELOPES_MAX or envelope in self._where:
            self._where[envelope] = index
        child = self.children.get(envelope)
        if child is not None and child.state in ("pending", "running"):
            child.state, child.actor, child.message = "running", hop.actor, hop.message

    def _split(self, data: dict[str, Any]) -> None:
        found = data.get("children") or []
        fresh = [one for one in found if one not in self.children]
        if fresh:
            self.children_total += int(data.get("total") or len(found))
        for index, envelope in enumerate(found):
            if len(self.children) < CHILDREN_MAX:
                self.children.setdefault(envelope, Child(envelope_id=envelope, index=index))

    def _branch(self, data: dict[str, Any]) -> None:
        child = self.children.get(str(data.get("envelope_id")))
        if child is not None:
            child.state = "succeeded" if data.get("outcome") == "done" else "failed"
            error = data.get("error")
            child.message = str(error.get("message", "")) if isinstance(error, dict) else ""


def _state(hop: Hop, job: Job, *, behind: bool) -> str:
    """`waiting`, `queued` (it is next), `current`, `done`, `failed` or `stopped` (it was here when the job ended)."""
    if job.state is JobState.SUCCEEDED:
        return "done" if hop.received or not job.aborted else "skipped"
    reached = hop.received or hop.began_at is not None
    if not reached and hop.index < job.steps_completed:
        return "done"  # the log no longer tells of it
    if not reached:
        is_next = hop.index == job.steps_completed and job.state in (JobState.RUNNING, JobState.PAUSED)
        if not is_next:
            return "waiting"
        return "queued" if job.actor else "current"
    if hop.completed >= hop.received and (behind or hop.completed) and not hop.dead:
        return "done"
    if job.state is JobState.FAILED:
        return "failed"
    return "stopped" if job.state.terminal else "current"
