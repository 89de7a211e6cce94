"""What it costs to know the caller: the same requests to a gateway without authentication and to one with API keys.

Reads of a job, one connection, one after the other, so that nothing but the request itself is measured; the limits of a
caller are raised out of the way, and counted all the same.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import httpx2

from benchmarks.gateway import dev
from benchmarks.report import Row
from groundplane.security import Security

SECTION = "The cost of authentication (SQLite, one caller)"
METRIC = "GET /v1/jobs/{id}, one by one, p50"
OPEN, KEYS = "without authentication", "API keys and limits"


def rows(rounds: int, scale: float) -> list[Row]:
    """Reads without and with a key, in turns."""
    return asyncio.run(_rows(rounds, scale))


async def _rows(rounds: int, scale: float) -> list[Row]:
    spent: dict[str, list[float]] = {OPEN: [], KEYS: []}
    with tempfile.TemporaryDirectory(prefix="groundplane-bench-") as folder:
        store = f"embedded://{folder}"
        async with Security.open(store, namespace="default", state=Path(folder), upgrade=True) as security:
            key = (await security.create_key("bench", scopes=["tools:*"])).secret.reveal()
        limited = dev(auth="keys", security_url=store, rate="1000000", burst="1000000", live_jobs="1000000")
        async with dev() as (open_url, _), limited as (keyed_url, _):
            async with _client(open_url) as without, _client(keyed_url, key) as with_key:
                clients = {OPEN: without, KEYS: with_key}
                paths = {name: await _job(client) for name, client in clients.items()}
                for _ in range(rounds):
                    for name, client in clients.items():
                        spent[name].append(await _reads(client, paths[name], int(1000 * scale)))
    over = [(keyed - plain) * 1000 for plain, keyed in zip(spent[OPEN], spent[KEYS], strict=True)]
    return [
        *(_row(name, METRIC, "ms", values) for name, values in spent.items()),
        _row(KEYS, "more for each request", "µs", over),
    ]


def _client(url: str, key: str | None = None) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"} if key else {})


async def _job(client: httpx2.AsyncClient) -> str:
    """The path of a job that has ended."""
    answer = await client.post("/v1/jobs", json={"tool": "echo", "arguments": {"value": 1}})
    path = f"/v1/jobs/{answer.json()['job_id']}"
    assert (await client.get(f"{path}/result", params={"wait": "30"})).status_code == 200
    return path


async def _reads(client: httpx2.AsyncClient, path: str, count: int) -> float:
    spent = []
    for _ in range(count):
        begin = time.perf_counter()
        response = await client.get(path)
        spent.append((time.perf_counter() - begin) * 1000)
        assert response.status_code == 200, response.text
    return statistics.median(spent)


def _row(subject: str, metric: str, unit: str, values: list[float]) -> Row:
    value = statistics.median(values)
    return Row(
        section=SECTION, subject=subject, metric=metric, unit=unit, value=value, rounds=values, better="lower",
        peer=subject == OPEN,
    )  # fmt: skip
