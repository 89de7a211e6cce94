"""An App whose manifests are compared with golden files: names that Kubernetes takes, and names that it does not."""

from __future__ import annotations

from groundplane import App, FanOut, RetryPolicy

app = App("acme")


@app.actor(retry=RetryPolicy(attempts=3), timeout="30s")
def double(value: int) -> int:
    return value * 2


@app.actor(concurrency=4, key="customer")
async def lookUp(customer: str) -> dict[str, str]:  # noqa: N802 - a name that Kubernetes does not take
    return {"customer": customer}


@app.actor
def split(values: list[int]) -> FanOut:
    return FanOut(values)


@app.actor(name="sum.all", join=True, join_timeout=60)
def total(values: list[int]) -> int:
    return sum(values)


app.tool("pipeline", route=[double, lookUp], description="Doubles a number and looks it up.")
app.tool("sums", route=[split, total], description="Adds numbers.")
