"""The app that people look at in a browser: one tool waits for a file, one asks, one fails until a file is there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from groundplane import App, Context

app = App("dashboard")


@app.actor
def read(folder: str, ctx: Context) -> dict[str, Any]:
    """A page for each file that is there; the next one when it is."""
    for page in (1, 2):
        ctx.progress(page * 30, f"page {page} of 2")
        while not Path(folder, f"page-{page}").exists():
            time.sleep(0.05)
    return {"pages": 2}


@app.actor
async def decide(name: str, ctx: Context) -> str:
    """Asks by which road."""
    answer = await ctx.ask(f"Which road for {name}?", {"road": ["north", "south"]}, key="road")
    return f"{name} by the {answer['road']} road"


@app.actor
def fragile(folder: str) -> str:
    """Fails until what it needs is there."""
    if not Path(folder, "needed").exists():
        raise FileNotFoundError("what it needs is not there")
    Path(folder, "done").touch()
    return "done"


app.tool("read", route=[read], description="Reads two pages.", timeout=120)
app.tool("decide", route=[decide], description="Asks before it goes.", timeout=120)
app.tool("fragile", route=[fragile], description="Needs a file.", timeout=120)
