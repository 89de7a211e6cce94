"""`/livez`, `/readyz`, `/healthz` and `/startupz` of the gateway, and the checks behind them."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp

from groundplane.core.errors import GroundplaneError
from groundplane.core.lifecycle import Lifecycle
from groundplane.gateway.access import caller_of
from groundplane.gateway.endpoints import Call
from groundplane.gateway.mcp.loading import LoadingLane
from groundplane.gateway.problems import HTTPProblem
from groundplane.gateway.rest import reply
from groundplane.gateway.services import Services
from groundplane.jobs import Jobs
from groundplane.jobs.port import JobQuery
from groundplane.security.access import Action, decide
from groundplane.telemetry.health import Check, Health, Report


def gateway_health(services: Services, lifecycle: Lifecycle, lane: LoadingLane, *, backend: str) -> Health:
    """The checks of a gateway: its store of jobs (`backend`), its flow, its tasks, and whether it drains.

    The queues are not among them: while they are away jobs are accepted and wait in the outbox, whose age is watched.
    """
    health = Health("gateway")
    health.starting("its port")
    health.add("jobs", _store_check(services.jobs), backend=backend)
    health.add("flow", _flow_check(services.jobs))
    health.add("tasks", _tasks_check(lifecycle, lane))
    health.add("drain", services.stopping.check)
    return health


class HealthApi:
    """What clients of the gateway's own port get. Strangers, where callers are authenticated, get no details."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def live(self, call: Call) -> ASGIApp:
        """The process answers."""
        return reply({"status": "ok"})

    async def started(self, call: Call) -> ASGIApp:
        """What the gateway needs to begin was there once."""
        reason = self._health.startup
        if reason is not None:
            raise HTTPProblem(503, f"gateway: {reason}")
        return reply({"status": "ok"})

    async def ready(self, call: Call) -> ASGIApp:
        """Work flows: 200, or 503 with the reasons. `?verbose` tells how long each check took."""
        report = await self._health.ready()
        if "verbose" in call.query:
            checks: dict[str, Any] = {one.name: one.document() for one in report.verdicts}
        else:
            checks = {one.name: "ok" if one.ok else one.reason for one in report.verdicts}
        return self._answer(call, report, {"status": "ok", "checks": checks})

    async def healthy(self, call: Call) -> ASGIApp:
        """Everything about the health of this gateway. `?stored` tells what was found within the last minute, and asks
        nothing.
        """
        report = self._health.results() if "stored" in call.query else await self._health.ready()
        return self._answer(call, report, self._health.document(report))

    def _answer(self, call: Call, report: Report, document: dict[str, Any]) -> ASGIApp:
        known = _is_known(call)
        if report.ok:
            return reply(document if known else {"status": "ok"})
        why = "; ".join(report.failures.values()) if known else "ask with credentials, or at the admin port, why"
        raise HTTPProblem(503, f"gateway: is not ready: {why}", details={"checks": document["checks"]} if known else {})


def _is_known(call: Call) -> bool:
    """Whether the caller may read reasons, which name hosts and databases: with the scope `read`; and everybody where
    nobody is authenticated, on the loopback.
    """
    return decide(caller_of(call.request.scope), Action.PROBE_DETAILS).allowed


def _store_check(jobs: Jobs) -> Check:
    async def check() -> str | None:
        try:
            await jobs.list_jobs(JobQuery(limit=1))
        except GroundplaneError as error:
            return f"the job store: {error.message}"
        return None

    return check


def _flow_check(jobs: Jobs) -> Check:
    async def check() -> str | None:
        return jobs.standstill()

    return check


def _tasks_check(lifecycle: Lifecycle, lane: LoadingLane) -> Check:
    async def check() -> str | None:
        if lifecycle.closed:
            return "the gateway is closed"
        failure = lifecycle.failure or lane.failure
        return f"a task failed: {type(failure).__name__}" if failure is not None else None

    return check
