"""The Grafana dashboard of a plane, as JSON: rows of panels, each one or a few queries over our metrics.

    json.dumps(dashboard())      # import it, or provision it from a file

It asks for a Prometheus data source when it is imported. What each metric means stands in `the metrics reference`.
"""

from __future__ import annotations

from typing import Any

import msgspec

_WINDOW = "[5m]"
_WIDTH, _HEIGHT = 8, 7


class Query(msgspec.Struct, frozen=True):
    """One query of a panel, and the legend of its series."""

    promql: str
    legend: str = ""


class Panel(msgspec.Struct, frozen=True):
    """A plot over time. `unit` is a unit of Grafana: `short`, `s`, `reqps`, `bytes`, `percentunit`."""

    title: str
    unit: str
    queries: tuple[Query, ...]


class Row(msgspec.Struct, frozen=True):
    """Panels under one title."""

    title: str
    panels: tuple[Panel, ...]


def _rate(metric: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{where}{_WINDOW}))"


def _p95(metric: str, by: str) -> str:
    return f"histogram_quantile(0.95, sum by ({by}, le) (rate({metric}_bucket{_WINDOW})))"


ROWS = (
    Row("Gateway", (
        Panel("Requests", "reqps", (Query(_rate("groundplane_gateway_requests_total", "status"), "{{status}}"),)),
        Panel("Time to answer, p95", "s", (Query(_p95("groundplane_gateway_request_seconds", "route"), "{{route}}"),)),
        Panel("Under way", "short", (
            Query("sum by (instance) (groundplane_gateway_requests_active)", "requests {{instance}}"),
            Query("sum by (instance) (groundplane_gateway_streams_open)", "streams {{instance}}"),
        )),
        Panel("Jobs accepted", "reqps", (Query(_rate("groundplane_gateway_jobs_accepted_total", "tool"), "{{tool}}"),)),
    )),
    Row("Work", (
        Panel("Handled", "reqps", (Query(_rate("groundplane_actor_messages_processed_total", "actor"), "{{actor}}"),)),
        Panel("Received", "reqps", (Query(_rate("groundplane_actor_messages_received_total", "actor"), "{{actor}}"),)),
        Panel("From receipt to settlement, p95", "s", (
            Query(_p95("groundplane_actor_processing_seconds", "actor"), "{{actor}}"),
        )),
        Panel("In the handler, p95", "s", (Query(_p95("groundplane_actor_runtime_seconds", "actor"), "{{actor}}"),)),
        Panel("Saturation", "percentunit", (
            Query(
                "sum by (actor) (groundplane_actor_active) / sum by (actor) (groundplane_actor_concurrency)",
                "{{actor}}",
            ),
        )),
        Panel("Dead letters in an hour", "short", (
            Query("sum by (actor) (increase(groundplane_actor_dead_letters_total[1h]))", "{{actor}}"),
        )),
    )),
    Row("Queues and outbox", (
        Panel("Messages that are ready", "short", (
            Query('max by (queue) (groundplane_queue_messages{state="ready"})', "{{queue}}"),
        )),
        Panel("Oldest message", "s", (
            Query("max by (queue) (groundplane_queue_oldest_message_seconds)", "{{queue}}"),
        )),
        Panel("Outbox", "short", (Query("max(groundplane_outbox_messages)", "messages"),)),
        Panel("Oldest of the outbox", "s", (Query("max(groundplane_outbox_oldest_seconds)", "seconds"),)),
        Panel("Stored", "short", (Query("max by (kind) (groundplane_jobs_stored)", "{{kind}}"),)),
    )),
    Row("Ports and pools", (
        Panel("Calls", "reqps", (
            Query(_rate("groundplane_port_calls_total", "port, outcome"), "{{port}} {{outcome}}"),
        )),
        Panel("Time of a call, p95", "s", (
            Query(_p95("groundplane_port_call_seconds", "port, operation"), "{{port}}.{{operation}}"),
        )),
        Panel("Connections", "short", (
            Query("sum by (backend, state) (groundplane_pool_connections)", "{{backend}} {{state}}"),
            Query("sum by (backend) (groundplane_pool_waiting)", "{{backend}} waiting"),
        )),
    )),
    Row("Health and machines", (
        Panel("Ready", "short", (Query("min by (instance) (groundplane_ready)", "{{instance}}"),)),
        Panel("Checks", "s", (
            Query("max by (instance, check) (groundplane_health_check_seconds)", "{{instance}} {{check}}"),
        )),
        Panel("CPU of processes", "percentunit", (
            Query(_rate("process_cpu_seconds_total", "instance"), "{{instance}}"),
        )),
        Panel("Memory of processes", "bytes", (
            Query("sum by (instance) (process_resident_memory_bytes)", "{{instance}}"),
        )),
        Panel("Free disk", "bytes", (
            Query('min by (instance) (groundplane_system_disk_bytes{kind="free"})', "{{instance}}"),
        )),
        Panel("Network", "Bps", (
            Query(_rate("groundplane_system_network_bytes_total", "direction"), "{{direction}}"),
        )),
        Panel("Versions", "short", (
            Query("count by (version, role) (groundplane_build_info)", "{{role}} {{version}}"),
        )),
    )),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana 10 and later imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in ROWS:
        panels.append({
            "id": len(panels) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
        })  # fmt: skip
        top += 1
        for number, panel in enumerate(row.panels):
            place = {"x": number % 3 * _WIDTH, "y": top + number // 3 * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            panels.append({"id": len(panels) + 1, **_panel(panel), "gridPos": place})
        top += -(-len(row.panels) // 3) * _HEIGHT
    return {
        "__inputs": [{
            "name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource", "pluginId": "prometheus",
        }],
        "uid": "groundplane",
        "title": "Groundplane",
        "tags": ["groundplane"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "panels": panels,
    }  # fmt: skip


def _panel(panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": source, "expr": one.promql, "legendFormat": one.legend}
            for number, one in enumerate(panel.queries)
        ],
    }


def queries() -> list[str]:
    """Every query of the dashboard."""
    return [query.promql for row in ROWS for panel in row.panels for query in panel.queries]
