"""The app of the gateway's scenarios: what the older system's end-to-end tests had, each actor in its own process."""

from __future__ import annotations

import time
from typing import Any

from groundplane import App, Context

app = App("scenarios")


@app.actor
def echo(message: str) -> dict[str, Any]:
    """Says it again."""
    return {"echoed": message}


@app.actor
def stepwise(steps: int, ctx: Context, pause_s: float = 0.05) -> dict[str, Any]:
    """Works in steps and tells of each."""
    for step in range(steps):
        ctx.progress(100 * (step + 1) / steps, f"step {step + 1} of {steps}")
        time.sleep(pause_s)
    return {"steps": steps}


@app.actor
def doubler(value: int) -> dict[str, int]:
    """Twice the value."""
    return {"value": value * 2}


@app.actor
async def incrementer(value: int) -> dict[str, int]:
    """Five more."""
    return {"value": value + 5}


@app.actor
def failing(reason: str) -> None:
    """Always fails."""
    raise ValueError(reason)


@app.actor(timeout=120)
def sleeper(seconds: float) -> dict[str, float]:
    """Sleeps longer than its tool allows."""
    time.sleep(seconds)
    return {"slept": seconds}


app.tool("echo", route=[echo], timeout=30)
app.tool("progress", route=[stepwise], timeout=30)
app.tool("pipeline", route=[doubler, incrementer], timeout=30)
app.tool("error", route=[failing], timeout=30)
app.tool("timeout", route=[sleeper], timeout=10)
