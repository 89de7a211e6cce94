"""Keys on NATS beside nats-py's KeyValue on the same server, and in a file: one by one, 50 at once, and how soon a
watch hears.

Values of 200 bytes. Both keep one value of a key in a file-backed stream of one replica, on a server that syncs every
write. nats-py's bucket has no TTL.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import nats
from nats.js.api import KeyValueConfig

from benchmarks.report import Row
from groundplane.kv import KV
from groundplane.testing.servers.instance import Instance

SECTION = "Keys (NATS with a file-backed stream, R1; SQLite)"
VALUE = b"x" * 200
CALLERS = 50
MANY = 100
WATCHED = 200
BAR_S = 0.001

Call = Callable[[str], Awaitable[object]]


@dataclass(frozen=True)
class Store:
    """One way to the keys."""

    put: Call
    get: Call
    watch: Callable[[], AsyncIterator[str]]
    """The keys of changes, from when the first is awaited."""
    peer: bool = False


def rows(rounds: int, scale: float) -> list[Row]:
    """Ours beside nats-py, in turns."""
    with Instance.open("nats") as server, tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measured(server.url, folder, max(rounds, 3), scale))


async def _measured(url: str, folder: str, rounds: int, scale: float) -> list[Row]:
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(KV.open(url, ttl=True))
        file = await stack.enter_async_context(KV.open(state=folder, ttl=True))
        stores = {
            "Groundplane on NATS": _ours(ours),
            "nats-py KeyValue": await stack.enter_async_context(_theirs(url)),
            "Groundplane in a file": _ours(file),
        }
        count = max(CALLERS, round(1000 * scale))
        found: list[Row] = []
        for subject, take in (("put", lambda store: store.put), ("got", lambda store: store.get)):
            alone = await _turns(stores, rounds, lambda store, t=take: _one_by_one(t(store), count))  # type: ignore[misc]
            found += _rows(f"{subject}, one by one", alone, "ms", better="lower", bar=BAR_S * 1000)
            many = await _turns(stores, rounds, lambda store, t=take: _at_once(t(store), count * 5))  # type: ignore[misc]
            found += _rows(f"{subject}, {CALLERS} callers", many, "/s")
        heard = await _turns(stores, rounds, lambda store: _heard(store, max(20, round(WATCHED * scale))))
        found += _rows("a change heard by a watch", heard, "ms", better="lower")
        return found + await _many({"Groundplane on NATS": ours, "Groundplane in a file": file}, rounds)


def _ours(kv: KV) -> Store:
    async def watch() -> AsyncIterator[str]:
        async with kv.watch(prefix="w/") as changes:
            await changes.snapshot()
            yield ""
            async for change in changes:
                yield change.key

    return Store(put=lambda key: kv.put(key, VALUE), get=kv.get, watch=watch)


@asynccontextmanager
async def _theirs(url: str) -> AsyncIterator[Store]:
    client = await nats.connect(url)
    try:
        kv = await client.jetstream().create_key_value(KeyValueConfig(bucket="peer"))

        async def watch() -> AsyncIterator[str]:
            changes = await kv.watchall()
            async for change in changes:
                if change is None:
                    break
            yield ""
            async for change in changes:
                if change is not None:
                    yield change.key

        yield Store(put=lambda key: kv.put(key, VALUE), get=kv.get, watch=watch, peer=True)
    finally:
        await client.close()


async def _turns(
    stores: dict[str, Store], rounds: int, measure: Callable[[Store], Awaitable[float]]
) -> dict[str, list[float]]:
    """Who begins changes from round to round; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in stores}
    for number in range(rounds + 1):
        for name in list(stores)[:: -1 if number % 2 else 1]:
            value = await measure(stores[name])
            if number:
                found[name].append(value)
    return found


async def _one_by_one(call: Call, count: int) -> float:
    """Median milliseconds."""
    spent = []
    for number in range(count):
        began = time.perf_counter()
        await call(f"k{number % 100}")
        spent.append(time.perf_counter() - began)
    return statistics.median(spent) * 1000


async def _at_once(call: Call, count: int) -> float:
    """Calls a second."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await call(f"k{number % 100}")

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return count / (time.perf_counter() - began)


async def _heard(store: Store, count: int) -> float:
    """Median milliseconds from the beginning of a put until its watch has it."""
    changes = store.watch()
    await anext(changes)
    spent = []
    for number in range(count):
        began = time.perf_counter()
        putting = asyncio.ensure_future(store.put(f"w/{number}"))
        while await anext(changes) != f"w/{number}":
            pass
        spent.append(time.perf_counter() - began)
        await putting
    await changes.aclose()  # type: ignore[attr-defined]
    return statistics.median(spent) * 1000


async def _many(stores: dict[str, KV], rounds: int) -> list[Row]:
    keys = [f"m{number}" for number in range(MANY)]
    values = dict.fromkeys(keys, VALUE)
    puts: dict[str, list[float]] = {name: [] for name in stores}
    gets: dict[str, list[float]] = {name: [] for name in stores}
    for number in range(rounds + 1):
        for name, kv in stores.items():
            began = time.perf_counter()
            await kv.put_many(values)
            middle = time.perf_counter()
            await kv.get_many(keys)
            if number:
                puts[name].append((middle - began) * 1000)
                gets[name].append((time.perf_counter() - middle) * 1000)
    return _rows(f"{MANY} keys put in one call", puts, "ms", better="lower") + _rows(
        f"{MANY} keys got in one call", gets, "ms", better="lower"
    )


def _rows(
    metric: str, found: dict[str, list[float]], unit: str, *, better: str = "higher", bar: float | None = None
) -> list[Row]:
    return [
        Row(
            section=SECTION,
            subject=name,
            metric=metric,
            value=statistics.median(values),
            unit=unit,
            rounds=values,
            bar=bar if name == "Groundplane on NATS" else None,
            better=better,
            peer="nats-py" in name,
        )
        for name, values in found.items()
    ]
