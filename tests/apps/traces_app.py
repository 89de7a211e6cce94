"""The app of the tests about traces and log lines: the tools that TRACED_TOOLS names, or all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from groundplane import App, Context, FanOut, RetryPolicy


def double(value: int) -> int:
    return value * 2


async def add_five(value: int) -> int:
    return value + 5


def split(numbers: list[int]) -> FanOut:
    return FanOut(numbers)


def square(value: int) -> int:
    return value * value


def total(values: list[int]) -> int:
    return sum(values)


def broken(secret: str = "") -> None:
    raise ValueError(f"no use for {secret}")


def flaky(ctx: Context, value: Any = None) -> int:
    if ctx.attempt < 2:
        raise RuntimeError("not yet")
    return ctx.attempt


def seen(ctx: Context, value: Any = None) -> dict[str, Any]:
    return {"traceparent": ctx.traceparent, "headers": dict(ctx.headers)}


def own_span(ctx: Context, value: Any = None) -> str:
    """A handler that uses OpenTelemetry itself."""
    from opentelemetry import trace
    from opentelemetry.propagate import extract
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider().get_tracer("mine")
    with tracer.start_as_current_span("mine", context=extract(ctx.headers)):
        context = trace.get_current_span().get_span_context()
        return f"{context.trace_id:032x}"


def slow_once(marker: str, ctx: Context) -> int:
    """The first attempt waits until nobody wants it any more."""
    if ctx.attempt < 2:
        Path(marker).touch()
        while not ctx.cancelled:
            time.sleep(0.01)
    return ctx.attempt


ROUTES: dict[str, list[Callable[..., Any]]] = {
    "pipeline": [double, add_five],
    "spread": [split, square, total],
    "broken": [broken],
    "flaky": [flaky],
    "seen": [seen],
    "own_span": [own_span],
    "slow_once": [slow_once],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "total": {"join": True, "join_timeout": 60},
    "flaky": {"retry": RetryPolicy(attempts=3, base_s=0.05, cap_s=0.1)},
}

app = App("traced")
for name, route in ROUTES.items():
    if name in os.environ.get("TRACED_TOOLS", ",".join(ROUTES)).split(","):
        app.tool(name, route=[app.actor(**OPTIONS.get(one.__name__, {}))(one) for one in route], timeout=60)
