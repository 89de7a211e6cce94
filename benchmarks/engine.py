"""The embedded engine beside raw apsw: commits, latency, wake-ups across processes, idle CPU.

    python -m benchmarks.engine [--seconds 1.5] [--runs 3] [--processes 8] [--idle 5]

Prints Markdown tables of medians and, last, the same numbers as JSON. Every run is bounded in time and works in a
temporary folder on the disk of `TMPDIR`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import apsw

from groundplane.backends.sqlite import Database, MigrationSet, Row, Transaction

ROWS = MigrationSet(
    component="bench",
    scripts=(
        (
            "0001_create.sql",
            "CREATE TABLE row (id INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB) STRICT;"
            "CREATE TABLE stamp (id INTEGER PRIMARY KEY AUTOINCREMENT, sent_ns INTEGER) STRICT",
        ),
    ),
)
PAYLOAD = os.urandom(300)
WINDOWS = (1, 4, 16, 64, 256, 1024)


def insert(tx: Transaction) -> None:
    tx.execute("INSERT INTO row (payload) VALUES (?)", (PAYLOAD,))


def stamp(tx: Transaction) -> None:
    tx.execute("INSERT INTO stamp (sent_ns) VALUES (?)", (time.monotonic_ns(),))
    tx.wake("stamps")


async def engine_rate(path: Path, window: int, seconds: float, inline: bool) -> float:
    """Durable single-row writes a second with `window` of them in flight."""
    async with Database.open(path, [ROWS], inline=inline) as db:
        until = time.perf_counter() + seconds
        done = 0

        async def task() -> None:
            nonlocal done
            while time.perf_counter() < until:
                await db.write(insert)
                done += 1

        began = time.perf_counter()
        await asyncio.gather(*(task() for _ in range(window)))
        return done / (time.perf_counter() - began)


def raw_rate(path: Path, window: int, seconds: float) -> float:
    """The same rows with apsw alone: a transaction of `window` inserts, `synchronous=FULL`."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL").fetchall()
        connection.execute("CREATE TABLE IF NOT EXISTS row (id INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB)")
        began = time.perf_counter()
        done = 0
        while time.perf_counter() - began < seconds:
            connection.execute("BEGIN IMMEDIATE")
            for _ in range(window):
                connection.execute("INSERT INTO row (payload) VALUES (?)", (PAYLOAD,))
            connection.execute("COMMIT")
            done += window
        return done / (time.perf_counter() - began)


async def paced(path: Path, rate: int, seconds: float, inline: bool) -> dict[str, float]:
    """Latency of writes that begin at a fixed rate, and how late the loop was for its timers meanwhile."""
    taken: list[float] = []
    late: list[float] = []

    async def one(db: Database) -> None:
        began = time.perf_counter()
        await db.write(insert)
        taken.append(time.perf_counter() - began)

    async with Database.open(path, [ROWS], inline=inline) as db, asyncio.TaskGroup() as group:
        began, cpu = time.perf_counter(), time.process_time()
        for i in range(int(rate * seconds)):
            due = began + i / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            late.append(max(0.0, time.perf_counter() - due))
            group.create_task(one(db))
    spent = time.process_time() - cpu
    return {
        "p50_ms": at(taken, 0.5),
        "p99_ms": at(taken, 0.99),
        "loop_late_p99_ms": at(late, 0.99),
        "cpu_percent": 100 * spent / (time.perf_counter() - began),
    }


async def wake_up(path: Path, count: int, inline: bool) -> dict[str, float]:
    """From before the write in this process to the row read in another, which sleeps in between."""
    child = start("listen", path, count)
    assert child.stdout is not None
    try:
        async with Database.open(path, [ROWS], inline=inline) as db:
            child.stdout.readline()
            for _ in range(count):
                await db.write(stamp)
                await asyncio.sleep(0.01)
        late = [int(line) / 1e9 for line in child.stdout]
    finally:
        finish(child)
    return {"p50_ms": at(late, 0.5), "p99_ms": at(late, 0.99)}


async def listen(path: Path, count: int) -> None:
    async with Database.open(path, [ROWS], inline=True) as db, db.listen("stamps") as bell:
        print("ready", flush=True)
        seen, late = 0, list[int]()
        while len(late) < count and await bell.wait(10):
            rows = await db.read(stamps_after(seen))
            late += [time.monotonic_ns() - sent_ns for _, sent_ns in rows]
            seen = rows[-1][0] if rows else seen
        print("\n".join(map(str, late)))


def idle_cpu(path: Path, processes: int, seconds: float) -> float:
    """CPU of all processes together, in percent of one core, while each listens and nothing happens."""
    children = [start("idle", path, seconds) for _ in range(processes)]
    try:
        return sum(float(child.communicate(timeout=seconds + 60)[0]) for child in children)
    finally:
        for child in children:
            finish(child)


async def idle(path: Path, seconds: float) -> None:
    async with Database.open(path, [ROWS]) as db, db.listen("jobs"), db.listen("queues"):
        await asyncio.sleep(1)
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        print(100 * (time.process_time() - cpu) / (time.perf_counter() - began))


def crowd(path: Path, processes: int, seconds: float) -> dict[str, float]:
    """Rows a second of several writing processes together, and the slowest's share of the fastest."""
    children = [start("write", path, seconds) for _ in range(processes)]
    try:
        rates = [float(child.communicate(timeout=seconds + 60)[0]) for child in children]
    finally:
        for child in children:
            finish(child)
    return {"rows_s": sum(rates), "slowest_of_fastest": min(rates) / max(rates)}


async def write(path: Path, seconds: float) -> None:
    print(await engine_rate(path, 16, seconds, inline=True))


def start(role: str, path: Path, argument: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.engine", "--role", role, str(path), str(argument)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def at(values: list[float], share: float) -> float:
    """A percentile, in milliseconds."""
    return 1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))]


def median(runs: int, measure: Callable[[Path], Any]) -> Any:
    """The median of several runs, each in a folder of its own; of every value where a run gives several."""
    results = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(Path(folder) / "plane.db"))
    if isinstance(results[0], dict):
        return {key: statistics.median(one[key] for one in results) for key in results[0]}
    return statistics.median(results)


def stamps_after(seen: int) -> Callable[[Transaction], list[Row]]:
    return lambda tx: tx.execute("SELECT id, sent_ns FROM stamp WHERE id > ?", (seen,))


def engine_runs(window: int, seconds: float, inline: bool) -> Callable[[Path], float]:
    return lambda path: asyncio.run(engine_rate(path, window, seconds, inline))


def paced_runs(rate: int, seconds: float, inline: bool) -> Callable[[Path], dict[str, float]]:
    return lambda path: asyncio.run(paced(path, rate, seconds, inline))


def wake_up_runs(count: int, inline: bool) -> Callable[[Path], dict[str, float]]:
    return lambda path: asyncio.run(wake_up(path, count, inline))


def measure_all(seconds: float, runs: int, processes: int, idle_s: float) -> dict[str, Any]:
    modes = {"thread": False, "inline": True}
    found: dict[str, Any] = {
        "sqlite": apsw.sqlite_lib_version(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "rates": {},
        "paced": {},
        "wake_up": {},
        "crowd": {},
    }
    for window in WINDOWS:
        row = {name: median(runs, engine_runs(window, seconds, inline)) for name, inline in modes.items()}
        row["raw apsw, FULL"] = median(runs, partial(raw_rate, window=window, seconds=seconds))
        found["rates"][window] = row
    for name, inline in modes.items():
        found["paced"][name] = median(runs, paced_runs(1000, seconds, inline))
        found["wake_up"][name] = median(runs, wake_up_runs(200, inline))
    for count in (2, 4):
        found["crowd"][count] = median(runs, partial(crowd, processes=count, seconds=seconds))
    found["idle_cpu_percent"] = median(1, partial(idle_cpu, processes=processes, seconds=idle_s))
    found["idle_processes"] = processes
    return found


def markdown(found: dict[str, Any]) -> str:
    lines = [
        f"SQLite {found['sqlite']}, Python {found['python']}, {found['cores']} cores. Rows of 300 bytes, durable.",
        "",
        "| writes in flight | thread, rows/s | inline, rows/s | raw apsw, FULL, as one transaction |",
        "|---|---|---|---|",
    ]
    for window, row in found["rates"].items():
        lines.append(f"| {window} | {row['thread']:,.0f} | {row['inline']:,.0f} | {row['raw apsw, FULL']:,.0f} |")
    lines += ["", "| 1,000 writes/s | p50 ms | p99 ms | loop late p99 ms | CPU % |", "|---|---|---|---|---|"]
    for name, row in found["paced"].items():
        lines.append(
            f"| {name} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {row['loop_late_p99_ms']:.2f} "
            f"| {row['cpu_percent']:.0f} |"
        )
    lines += ["", "| write here → read in another process | p50 ms | p99 ms |", "|---|---|---|"]
    for name, row in found["wake_up"].items():
        lines.append(f"| {name} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} |")
    lines += ["", "| writing processes (16 in flight each) | rows/s together | slowest / fastest |", "|---|---|---|"]
    for count, row in found["crowd"].items():
        lines.append(f"| {count} | {row['rows_s']:,.0f} | {row['slowest_of_fastest']:.2f} |")
    lines += [
        "",
        f"Idle CPU of {found['idle_processes']} listening processes: {found['idle_cpu_percent']:.2f} % of a core.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--idle", type=float, default=5.0)
    parser.add_argument("--role", nargs=3, metavar=("ROLE", "FILE", "ARGUMENT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.role:
        role, path, argument = chosen.role
        roles: dict[str, Any] = {
            "listen": lambda: listen(Path(path), int(float(argument))),
            "idle": lambda: idle(Path(path), float(argument)),
            "write": lambda: write(Path(path), float(argument)),
        }
        asyncio.run(roles[role]())
        return
    found = measure_all(chosen.seconds, chosen.runs, chosen.processes, chosen.idle)
    print(markdown(found))
    print("\n```json\n" + json.dumps(found) + "\n```")


if __name__ == "__main__":
    main()
