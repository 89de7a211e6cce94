"""What a process answers about its health, over any HTTP server: a status and text or JSON for each of four paths."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from groundplane.telemetry.health import Health, Report

PATHS = ("/livez", "/readyz", "/healthz", "/startupz")
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"

Answer: TypeAlias = tuple[int, str, bytes]


async def answer(health: Health, path: str, query: str = "") -> Answer:
    """Status, content type and body: 200 when it is well, 503 when not. `query` may hold `verbose` and `stored`."""
    wanted = {part.partition("=")[0] for part in query.split("&")}
    if path == "/livez":
        return 200, TEXT, b"ok\n"
    if path == "/startupz":
        reason = health.startup
        return (200, TEXT, b"ok\n") if reason is None else (503, TEXT, f"{reason}\n".encode())
    report = health.results() if "stored" in wanted else await health.ready()
    if path == "/healthz":
        return 200 if report.ok else 503, JSON, msgspec.json.encode(health.document(report)) + b"\n"
    return 200 if report.ok else 503, TEXT, _lines(report, verbose="verbose" in wanted)


def _lines(report: Report, *, verbose: bool) -> bytes:
    if verbose:
        lines = [f"{one.name}: {one.shown()}" for one in report.verdicts]
    else:
        lines = [] if report.ok else [f"{one.name}: {'ok' if one.ok else one.reason}" for one in report.verdicts]
    return ("\n".join(lines or ["ok"]) + "\n").encode()
