"""The app of the fault tests: its effects are lines in files, so that what really happened can be read afterwards.

`GROUNDPLANE_TEST_EFFECTS` names the folder. Each line is one `write` of an append-only file: lines of all processes
stand in the order in which they happened, and none is torn by a kill.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from groundplane import App, Context, FanOut

PARTS = 5
RUNS, CHARGES, DEBITS = "runs", "charges", "debits"

app = App("fault")


def note(file: str, *words: object) -> None:
    """One line, durable against a kill of this process when it returns."""
    path = Path(os.environ["GROUNDPLANE_TEST_EFFECTS"], file)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(descriptor)


def noted(file: str, *words: object) -> bool:
    """Whether a line that begins with these words is there."""
    path = Path(os.environ["GROUNDPLANE_TEST_EFFECTS"], file)
    wanted = [str(word) for word in words]
    return path.exists() and any(line.split()[: len(wanted)] == wanted for line in path.read_text().splitlines())


@app.actor
def split(order: str, die: str = "") -> FanOut:
    """One part of the order for each child."""
    return FanOut([{"key": f"{order}/{index}", "index": index, "die": die} for index in range(PARTS)])


@app.actor
def effect(key: str, ctx: Context, index: int = 0, die: str = "") -> dict[str, Any]:
    """Two effects under one key: a charge, which may be repeated while it is in doubt, and a debit, which may not."""
    note(RUNS, key, ctx.attempt, os.getpid())
    if die == "raise":
        raise ValueError(f"order {key} is refused")
    _die(die, "before", ctx)
    receipt = ctx.once(f"{key}:charge", lambda: _charge(key, die, ctx))
    note(CHARGES, key, "recorded")
    _die(die, "between", ctx)
    _debit(key, ctx)
    _die(die, "after", ctx)
    return {"key": key, "index": index, "receipt": receipt}


@app.actor(join=True, join_timeout=120)
def join(items: list[dict[str, Any]], ctx: Context) -> dict[str, Any]:
    """The ordered list of what the parts gave."""
    keys, receipts = [one["key"] for one in items], [one["receipt"] for one in items]
    return {"keys": keys, "receipts": receipts, "missing": list(ctx.join.missing)}


@app.actor
def finish(payload: dict[str, Any]) -> dict[str, Any]:
    """Marks the result as whole."""
    return {**payload, "finished": True}


def _charge(key: str, die: str, ctx: Context) -> str:
    note(CHARGES, key, "charged", ctx.attempt)
    _die(die, "inside", ctx)
    return f"receipt of {key}"


def _debit(key: str, ctx: Context) -> None:
    """Not to be repeated even in doubt: then the books are asked whether it happened."""
    try:
        ctx.once(f"{key}:debit", lambda: note(DEBITS, key, ctx.attempt), in_doubt="raise")
    except Exception as error:
        if getattr(error, "reason", "") != "effect_in_doubt":
            raise
        if not noted(DEBITS, key):
            note(DEBITS, key, ctx.attempt)


def _die(die: str, place: str, ctx: Context) -> None:
    """`die` is `worker:PLACE` or `runtime:PLACE`: on the first attempt, this process or its parent is killed there."""
    who, _, where = die.partition(":")
    if where == place and ctx.attempt == 1:
        note("deaths", who, place, os.getpid())
        os.kill(os.getpid() if who == "worker" else os.getppid(), signal.SIGKILL)
        if who == "runtime":
            signal.pause()  # the runtime's death ends its workers


app.tool("spread", route=[split, effect, join, finish], description="Fans an order out, and joins it.")
app.tool("plain", route=[effect, finish], description="One effect, two hops.")
