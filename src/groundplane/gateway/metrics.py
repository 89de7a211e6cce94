"""What the gateway measures. Labels are bounded: routes are those of the table, never paths."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from groundplane.telemetry.metrics import SECONDS, SERIES_MAX


class GatewayMetrics:
    """Requests by route and status, their duration, open streams, accepted jobs, MCP calls by outcome."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._requests = Counter(
            "groundplane_gateway_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "groundplane_gateway_request_seconds",
            "From request to the end of the answer; streams are not counted.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self._jobs = Counter(
            "groundplane_gateway_jobs_accepted", "Jobs created, by tool and lane.", ("tool", "lane"), registry=registry
        )
        self._calls = Counter(
            "groundplane_gateway_mcp_calls", "MCP tool calls, by outcome.", ("outcome",), registry=registry
        )
        self.streams = Gauge("groundplane_gateway_streams_open", "Event streams that are open.", registry=registry)
        self.relayed = Counter(
            "groundplane_gateway_messages_relayed", "First messages sent to their queue.", registry=registry
        )
        self.active = Gauge(
            "groundplane_gateway_requests_active", "Requests being answered, streams among them.", registry=registry
        )
        self._refused = Counter(
            "groundplane_gateway_refused", "What a limit refused, by limit.", ("limit",), registry=registry
        )
        self._children: dict[tuple[str, ...], Counter] = {}
        self._made: dict[Counter, int] = {}
        self._timers: dict[str, Histogram] = {}

    def request(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """One request was answered; `seconds` None for a stream."""
        self._child(self._requests, method, route, str(status)).inc()
        if seconds is not None:
            timer = self._timers.get(route)
            if timer is None:
                timer = self._timers[route] = self._seconds.labels(route)
            timer.observe(seconds)

    def accepted(self, tool: str, lane: str) -> None:
        """A job was created."""
        self._child(self._jobs, tool, lane).inc()

    def called(self, outcome: str) -> None:
        """An MCP tool call ended: ok, error, invalid, unknown_tool, unsupported, cancelled, detached; or as
        task or input_required.
        """
        self._child(self._calls, outcome).inc()

    def refused(self, limit: str) -> None:
        """A limit refused something: rate, streams, live_jobs, connections, head, body, unread."""
        self._child(self._refused, limit).inc()

    def _child(self, metric: Counter, *labels: str) -> Counter:
        key = (metric._name, *labels)
        child = self._children.get(key)
        if child is None:
            made = self._made[metric] = self._made.get(metric, 0) + 1
            if made >= SERIES_MAX:  # the last series is that of all others
                return metric.labels(*("other" for _ in labels))
            child = self._children[key] = metric.labels(*labels)
        return child
