"""The rules that a plane has by itself. Each has a run-book of its name in `docs/howto/runbooks/`."""

from __future__ import annotations

from typing import Any, Literal

from groundplane.telemetry.expressions import Expression, Increase, Level, Quantile, Ratio, Share
from groundplane.telemetry.rules import Rule

RUNBOOKS = "docs/howto/runbooks"
_WAITS_BY_DESIGN = r"!/v1/jobs/\{job_id\}/result|/mcp|unmatched"
"""Routes whose answer may wait for a job, and so are no measure of the gateway."""


def default_rules() -> list[Rule]:
    """Errors, latency, backlog, dead letters, outbox, readiness, replicas, machines, stores."""
    return [*_work(), *_gateway(), *_processes(), *_stores(), *_machines()]


def _work() -> list[Rule]:
    return [
        _rule(
            "high_error_rate",
            Ratio(
                part="groundplane_actor_messages_failed_total",
                whole="groundplane_actor_messages_received_total",
                window_s=300,
                at_least=10,
                by=["actor"],
            ),
            above=0.1,
            summary="More than a tenth of an actor's calls fail.",
        ),
        _rule(
            "dead_letters",
            Increase(metric="groundplane_actor_dead_letters_total", window_s=600, by=["actor"]),
            above=0,
            summary="Messages became dead letters: work has ended without its result.",
        ),
        _rule(
            "queue_backlog",
            Level(metric="groundplane_queue_messages", where={"state": "ready"}, by=["queue"]),
            above=1000,
            for_s=600,
            summary="A queue has held more than 1,000 messages for ten minutes.",
        ),
        _rule(
            "queue_stands_still",
            Level(metric="groundplane_queue_oldest_message_seconds", by=["queue"]),
            above=300,
            for_s=60,
            severity="critical",
            summary="A message has waited for more than five minutes to be taken.",
        ),
        _rule(
            "actor_saturated",
            Share(part="groundplane_actor_active", whole="groundplane_actor_concurrency", by=["actor"]),
            above=0.95,
            for_s=900,
            severity="info",
            summary="An actor has worked at its full concurrency for a quarter of an hour.",
        ),
        _rule(
            "reports_lost",
            Increase(metric="groundplane_actor_reports_lost_total", window_s=600, by=["actor"]),
            above=0,
            summary="The job store did not take reports of progress.",
        ),
    ]


def _gateway() -> list[Rule]:
    return [
        _rule(
            "gateway_errors",
            Ratio(
                part="groundplane_gateway_requests_total",
                whole="groundplane_gateway_requests_total",
                where={"status": "5.."},
                window_s=300,
                at_least=10,
            ),
            above=0.05,
            severity="critical",
            summary="More than a twentieth of the requests are answered with a server error.",
        ),
        _rule(
            "high_latency",
            Quantile(
                metric="groundplane_gateway_request_seconds",
                q=0.95,
                window_s=300,
                by=["route"],
                where={"route": _WAITS_BY_DESIGN},
            ),
            above=1.0,
            severity="critical",
            summary="One in twenty requests takes longer than a second.",
        ),
        _rule(
            "outbox_stuck",
            Level(metric="groundplane_outbox_oldest_seconds"),
            above=60,
            for_s=60,
            severity="critical",
            summary="Jobs were accepted whose first message has not reached its queue for a minute.",
        ),
        _rule(
            "relay_failing",
            Increase(metric="groundplane_outbox_relay_failures_total", window_s=300),
            above=5,
            summary="Messages of the outbox cannot be sent to their queues.",
        ),
    ]


def _processes() -> list[Rule]:
    return [
        _rule(
            "replica_down",
            Level(metric="up", where={"job": "groundplane"}, fold="min", by=["instance"]),
            below=1,
            for_s=60,
            severity="critical",
            summary="A process of the plane does not answer.",
        ),
        _rule(
            "not_ready",
            Level(metric="groundplane_ready", fold="min", by=["instance"]),
            below=1,
            for_s=120,
            severity="critical",
            summary="A process has not been ready for two minutes.",
        ),
        _rule(
            "health_check_slow",
            Level(metric="groundplane_health_check_seconds", by=["instance", "check"]),
            above=1.0,
            for_s=300,
            summary="A health check has taken longer than a second for five minutes.",
        ),
        _rule(
            "process_restarts",
            Increase(metric="groundplane_process_restarts_total", window_s=900, by=["name"]),
            above=3,
            summary="A process was started again more than three times in a quarter of an hour.",
        ),
    ]


def _stores() -> list[Rule]:
    return [
        _rule(
            "store_errors",
            Increase(
                metric="groundplane_port_calls_total",
                where={"outcome": "unavailable|deadline_exceeded|internal|broken"},
                window_s=300,
                by=["port"],
            ),
            above=10,
            summary="Calls of a store or of the queues fail.",
        ),
        _rule(
            "pool_exhausted",
            Level(metric="groundplane_pool_waiting", where={"backend": "postgresql"}, by=["instance", "backend"]),
            above=10,
            for_s=120,
            summary="Calls have waited for a connection of the pool for two minutes.",
        ),
    ]


def _machines() -> list[Rule]:
    return [
        _rule(
            "disk_almost_full",
            Level(metric="groundplane_system_disk_bytes", where={"kind": "free"}, fold="min", by=["instance"]),
            below=1024**3,
            for_s=60,
            severity="critical",
            summary="Less than 1 GiB is free where the state folder lies.",
        ),
        _rule(
            "memory_almost_full",
            Level(metric="groundplane_system_memory_bytes", where={"kind": "available"}, fold="min", by=["instance"]),
            below=256 * 1024**2,
            for_s=120,
            summary="Less than 256 MiB of memory is available on a machine.",
        ),
    ]


def _rule(
    name: str,
    expression: Expression,
    *,
    summary: str,
    above: float | None = None,
    below: float | None = None,
    for_s: float = 0.0,
    severity: Literal["info", "warning", "critical"] = "warning",
) -> Rule:
    more: dict[str, Any] = {"compare": "above", "threshold": above} if below is None else {
        "compare": "below", "threshold": below,
    }  # fmt: skip
    return Rule(
        name=name,
        expression=expression,
        for_s=for_s,
        severity=severity,
        summary=summary,
        runbook=f"{RUNBOOKS}/{name}.md",
        **more,
    )
