"""Blobs on S3 (MinIO): what a claim check sends and fetches, and small objects, beside obstore alone in one run.

obstore alone verifies nothing that it reads; the second peer is obstore with a SHA-256 of each transfer, no more.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import obstore
from obstore.store import S3Store

from benchmarks.report import Row
from groundplane.blobs import Blobs
from groundplane.testing.servers.instance import Instance

SECTION = "Blobs on S3 (MinIO on one disk)"
MB = 1_000_000
SIZES_MB = (1, 10, 100)
CALLERS = 32
SMALL = os.urandom(1000)
UP_BAR, DOWN_BAR = 10.0, 20.0


@dataclass(frozen=True)
class Store:
    """Put and get, as each of them does it."""

    put: Callable[[str, bytes], Awaitable[object]]
    get: Callable[[str], Awaitable[bytes]]


def rows(rounds: int, scale: float) -> list[Row]:
    """Ours beside obstore, in turns."""
    with Instance.open("s3") as server:
        return asyncio.run(_measured(server.url, max(rounds, 5), scale))


async def _measured(server_url: str, rounds: int, scale: float) -> list[Row]:
    url = f"s3://bench?create=true&endpoint={quote(server_url, safe=':/@')}"
    async with Blobs.open(url) as blobs:
        raw = _raw(server_url)
        stores = {
            "Groundplane": Store(blobs.put, blobs.get),
            "obstore": Store(lambda key, data: obstore.put_async(raw, key, data), lambda key: _got(raw, key)),
            "obstore with SHA-256": Store(
                lambda key, data: _put_hashed(raw, key, data), lambda key: _got_hashed(raw, key)
            ),
        }
        found: list[Row] = []
        for size in SIZES_MB:
            up, down = await _transfers(stores, size, rounds, repeats=max(1, round(scale * 20 / size)))
            found += _rows(f"{size} MB up", up, "MB/s", UP_BAR) + _rows(f"{size} MB down", down, "MB/s", DOWN_BAR)
        puts, gets = await _small(stores, rounds, max(CALLERS, round(1000 * scale)))
        return (
            found
            + _rows(f"1 kB put, {CALLERS} callers", puts, "/s")
            + _rows(f"1 kB got, {CALLERS} callers", gets, "/s")
        )


def _raw(server_url: str) -> S3Store:
    parts = urlsplit(server_url)
    return S3Store(
        "bench",
        endpoint=f"http://{parts.hostname}:{parts.port}",
        access_key_id=parts.username or "",
        secret_access_key=parts.password or "",
        region="us-east-1",
        client_options={"allow_http": True},
    )


async def _got(raw: S3Store, key: str) -> bytes:
    return bytes(await (await obstore.get_async(raw, key)).bytes_async())


async def _put_hashed(raw: S3Store, key: str, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    await obstore.put_async(raw, key, data, attributes={"sha256": digest})


async def _got_hashed(raw: S3Store, key: str) -> bytes:
    found = await obstore.get_async(raw, key)
    data = bytes(await found.bytes_async())
    assert hashlib.sha256(data).hexdigest() == found.attributes["sha256"]
    return data


async def _transfers(stores: dict[str, Store], size: int, rounds: int, repeats: int) -> Any:
    """MB a second up and down; who begins changes from round to round."""
    data = os.urandom(size * MB)
    up: dict[str, list[float]] = {name: [] for name in stores}
    down: dict[str, list[float]] = {name: [] for name in stores}
    for number in range(rounds + 1):
        for name in list(stores)[:: -1 if number % 2 else 1]:
            store, spent = stores[name], [0.0, 0.0]
            for repeat in range(repeats):
                began = time.perf_counter()
                await store.put(f"{name}/{size}/{repeat}", data)
                sent = time.perf_counter()
                got = await store.get(f"{name}/{size}/{repeat}")
                spent[0] += sent - began
                spent[1] += time.perf_counter() - sent
                assert len(got) == len(data)
            if number:  # the first round warms up
                up[name].append(size * repeats / spent[0])
                down[name].append(size * repeats / spent[1])
    return up, down


async def _small(stores: dict[str, Store], rounds: int, count: int) -> Any:
    puts: dict[str, list[float]] = {name: [] for name in stores}
    gets: dict[str, list[float]] = {name: [] for name in stores}
    for number in range(rounds):
        for name in list(stores)[:: -1 if number % 2 else 1]:
            store = stores[name]
            puts[name].append(await _rate(lambda key, one=store: one.put(key, SMALL), name, count))  # type: ignore[misc]
            gets[name].append(await _rate(store.get, name, count))
    return puts, gets


async def _rate(call: Callable[[str], Awaitable[object]], name: str, count: int) -> float:
    keys = iter([f"{name}/small/{number}" for number in range(count)])

    async def caller() -> None:
        for key in keys:
            await call(key)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return count / (time.perf_counter() - began)


def _rows(metric: str, measured: dict[str, list[float]], unit: str, bar: float | None = None) -> list[Row]:
    return [
        Row(
            section=SECTION,
            subject=name,
            metric=metric,
            value=statistics.median(values),
            unit=unit,
            rounds=values,
            bar=bar if name == "Groundplane" else None,
            peer=name != "Groundplane",
        )
        for name, values in measured.items()
    ]
