"""The calls that are under way: their progress, what handlers ask for, and telling them that nobody waits any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from groundplane.core.envelope import Envelope
from groundplane.core.errors import FailedPrecondition, GroundplaneError, InvalidArgument, Unsupported
from groundplane.core.lazily import Lazily
from groundplane.jobs.port import Change, JobState
from groundplane.mesh.ledger.port import Ledger
from groundplane.mesh.reporting import Reporter
from groundplane.mesh.routing import PROCESSING, Router, dedup_key, note
from groundplane.mesh.runtime_client import Ticket
from groundplane.mesh.sidecar.asking import Asking
from groundplane.mesh.sidecar.bus import OPS, Outside, ServiceBus
from groundplane.mesh.start import JOB_TOKEN
from groundplane.queues.port import Delivery
from groundplane.telemetry.metrics import ActorMetrics, CustomMetrics

TELL_AFTER_S = 0.005
"""What takes longer is told to its job while it runs."""
PROGRESS_EVERY_S = 0.02
HEARTBEAT_EVERY_S = 1.0
LOOK_EVERY_S = 0.1
LOOK_AT_MOST = 64
TROUBLE_S = 5.0
LOG_LINES_MAX = 1000
"""Lines of the log of one call."""
RECORD_FOR_S = 600.0
"""How long the end of an effect is tried to be recorded."""
_SPENT_WEIGHT = 0.1


class Telling:
    """What a job is yet to be told of one delivery: in a moment, or with the next that it must be told."""

    def __init__(self, reporter: Reporter | None, token: str = "") -> None:
        self._reporter = reporter
        self._token = token
        self._changes: list[Change] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, changes: Sequence[Change]) -> None:
        """These too."""
        if not changes or self._reporter is None:
            return
        self._changes += changes
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_AFTER_S, self.post)

    def take(self) -> list[Change]:
        """What was not told so far, for the caller to tell."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        taken, self._changes = self._changes, []
        return taken

    def post(self, changes: Sequence[Change] = ()) -> None:
        """Tell what was not told so far, and `changes`."""
        told = [*self.take(), *changes]
        if told and self._reporter is not None:
            self._reporter.post(told, self._token)


class CallWatch:
    """What happens during one call (the `CallEvents` of the client), and the ticket that cancels it."""

    def __init__(
        self,
        router: Router,
        envelope: Envelope,
        telling: Telling,
        custom: CustomMetrics,
        metrics: ActorMetrics,
        ledger: Ledger | None,
        attempt: int = 1,
        reporter: Reporter | None = None,
        bus: Lazily[ServiceBus] | None = None,
    ) -> None:
        self.ticket = Ticket()
        self.outside = Outside(bus, envelope, router.spec.name)
        self.ticket.also = self.outside.stop
        self.envelope = envelope
        self.since = time.monotonic()
        self.running = False
        self.away: GroundplaneError | None = None
        """Why ledger or bus could not keep what the handler gave: a failure after that is not the handler's."""
        self._router = router
        self._telling = telling
        self._custom = custom
        self._metrics = metrics
        self._ledger = ledger
        self.asking = Asking(reporter, envelope, router.spec.name, self.token)
        self._attempt = attempt
        self._lines = 0
        self._weight = PROCESSING
        self._reported_at = 0.0

    @property
    def token(self) -> str:
        """The job's token, for reports over HTTP."""
        return str(self.envelope.headers.get(JOB_TOKEN, ""))

    def started(self) -> None:
        """It has left the line; from now on it is a call."""
        self.running = True

    def called(self) -> None:
        """The handler is called now: the job is told so in a moment, of a quick call when it has ended."""
        self._telling.add(self._router.progress(self.envelope, PROCESSING, "processing", attempt=self._attempt))

    def progress(self, percent: float, message: str) -> None:
        """See `CallEvents`. Closer than 20 ms together, only the first is reported."""
        self._weight = max(self._weight, 10.0 + 0.9 * min(max(percent, 0.0), 100.0))
        self._report(10.0 + 0.9 * min(max(percent, 0.0), 100.0), "processing", message, PROGRESS_EVERY_S)

    def heartbeat(self) -> None:
        """See `CallEvents`. At most one a second is reported."""
        self._report(self._weight, "heartbeat", "", HEARTBEAT_EVERY_S)

    def metric(self, name: str, kind: str, value: float, labels: dict[str, str]) -> None:
        """See `CallEvents`."""
        if not self._custom.record(name, kind, value, labels):
            self._metrics.custom_refused.inc()

    def log(self, level: str, message: str, data: dict[str, Any]) -> None:
        """See `CallEvents`. After `LOG_LINES_MAX` lines the rest is left out, and the last says so."""
        self._lines += 1
        if self._lines > LOG_LINES_MAX:
            return
        line: dict[str, Any] = {"actor": self._router.spec.name, "level": level, "message": message, "data": data}
        if self._lines == LOG_LINES_MAX:
            line = {**line, "level": "warning", "message": "the log is full; further lines are left out", "data": {}}
        self._telling.post(note(self.envelope, "log", line))

    async def ask(self, op: str, fields: dict[str, Any]) -> Any:
        """See `CallEvents`: `question`; `once_begin` and `once_end`, kept by the ledger under the actor's name, the
        envelope and its hop; and those of the bus. A request that fails is the handler's own failure.
        """
        try:
            return await self._asked(op, fields)
        except GroundplaneError as error:
            if error.retryable and op != "call":
                self.away = error
            raise

    async def _asked(self, op: str, fields: dict[str, Any]) -> Any:
        if op == "question":
            return await self.asking.answers(fields["questions"])
        if op in OPS:
            return await self.outside.ask(op, fields["name"], fields["value"], fields["options"])
        if self._ledger is None:
            raise Unsupported("once: this sidecar has no ledger; give it --ledger")
        key = fields.get("key")
        if not isinstance(key, str) or not key:
            raise InvalidArgument(f"key: {key!r} is not a non-empty string")
        scoped = f"{self._router.spec.name}/{dedup_key(self.envelope)}/{key}"
        if op == "once_end":
            await self._recorded(self._ledger, scoped, fields.get("value"))
            return {}
        if op != "once_begin":
            raise Unsupported(f"ask: {op!r} is unknown to this sidecar; upgrade it")
        once = await self._ledger.once_begin(scoped)
        if once.state == "done":
            return {"state": "done", "value": once.value}
        if once.state == "begun" and fields.get("in_doubt") == "raise":
            raise FailedPrecondition(
                f"once: {key!r} was begun by an earlier attempt that recorded no end; find out whether it happened",
                reason="effect_in_doubt",
            )
        return {"state": "new"}

    async def _recorded(self, ledger: Ledger, key: str, value: Any) -> None:
        """Record the end of an effect. It has happened and must not happen again, so while the ledger is away this is
        tried on, also when the call is over.
        """
        give_up_at = time.monotonic() + RECORD_FOR_S
        for tries in range(1_000_000):
            try:
                await ledger.once_end(key, value)
                return
            except GroundplaneError as error:
                if not error.retryable or time.monotonic() >= give_up_at:
                    raise
            await asyncio.sleep(min(1.0, 0.1 * 2 ** min(tries, 4)))

    def _report(self, weight: float, status: str, message: str, every_s: float) -> None:
        now = time.monotonic()
        if now - self._reported_at >= every_s:
            self._reported_at = now
            told = self._router.progress(self.envelope, weight, status, message[:1000], attempt=self._attempt)
            self._telling.post(told)


class Active:
    """All calls of this sidecar, waiting for a slot or running; and whether work flows."""

    def __init__(self) -> None:
        self.draining = False
        self.calls: dict[int, tuple[Delivery, CallWatch]] = {}
        self.last_progress = time.monotonic()
        self._trouble = ("", 0.0)
        self._begun = asyncio.Event()
        self.runtime_s = 0.0
        """Smoothed time of a call, in seconds."""

    def __len__(self) -> int:
        return len(self.calls)

    @contextmanager
    def calling(self, delivery: Delivery, watch: CallWatch) -> Iterator[None]:
        """While the context is open the call can be found and cancelled."""
        self.calls[id(watch)] = (delivery, watch)
        self._begun.set()
        try:
            yield
        finally:
            del self.calls[id(watch)]

    def progressed(self) -> None:
        """Something was received or settled."""
        self.last_progress = time.monotonic()

    def troubled(self, error: GroundplaneError) -> None:
        """Something could not be done as a store, or the broker, was away."""
        if error.code == "unavailable":
            self._trouble = (str(error), time.monotonic())

    def trouble(self) -> str:
        """What was in the way within the last seconds, empty for nothing. It is tried again and again, so what is
        older has passed.
        """
        text, at = self._trouble
        return text if time.monotonic() - at < TROUBLE_S else ""

    def at_ease(self) -> None:
        """A delivery was handled to its end."""
        self._trouble = ("", 0.0)

    def spent(self, seconds: float) -> None:
        """One call took so long."""
        known = self.runtime_s
        self.runtime_s = seconds if known == 0.0 else known + _SPENT_WEIGHT * (seconds - known)

    def cancel_all(self, reason: str) -> None:
        """Tell every running call."""
        for _, watch in list(self.calls.values()):
            watch.ticket.cancel(reason)

    async def watch_jobs(self, reporter: Reporter, timeout_s: float = 1.0) -> None:
        """For ever: when jobs end, look at those of calls that last longer, and cancel what nobody wants.

        Without such calls nothing wakes this sidecar: most jobs that end are not of its concern.
        """
        while True:
            await self._begun.wait()
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                if self._older():
                    await self._watch_older(reporter, timeout_s)
            except GroundplaneError:  # the store is away: seen by every report; look again
                await asyncio.sleep(timeout_s)
            if not self.calls:
                self._begun.clear()

    async def _watch_older(self, reporter: Reporter, timeout_s: float) -> None:
        async with reporter.changes() as changes:
            while older := self._older():
                for watch in older[:LOOK_AT_MOST]:
                    await self._look(reporter, watch)
                await changes.wait(timeout_s)
                await asyncio.sleep(LOOK_EVERY_S)

    def _older(self) -> list[CallWatch]:
        """Calls of jobs that were not looked at for a while, or never, those first that it was longest ago."""
        before = time.monotonic() - LOOK_EVERY_S
        older = [watch for _, watch in self.calls.values() if watch.since < before and watch.envelope.job_id]
        return sorted(older, key=lambda watch: watch.since)

    async def _look(self, reporter: Reporter, watch: CallWatch) -> None:
        watch.since = time.monotonic() - LOOK_EVERY_S  # those not looked at longest come first
        job_id = watch.envelope.job_id
        assert job_id is not None
        state: JobState | None = await reporter.state(job_id, watch.token)
        if state is not None and state.terminal:
            watch.ticket.cancel("cancelled")

    async def keep_beating(self, every_s: float) -> None:
        """For ever: a heartbeat to the job of each running call."""
        while True:
            await asyncio.sleep(every_s)
            for _, watch in list(self.calls.values()):
                if watch.running:
                    watch.heartbeat()
