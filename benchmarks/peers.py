"""The peers: Huey on SQLite with fsync, and DBOS on SQLite, each doing durable no-op work in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

HUEY = """
import json, sys, threading, time
from huey import SqliteHuey
path, count, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
huey = SqliteHuey(filename=path, fsync=True, results=False)
done = []

@huey.task()
def echo(number):
    done.append(time.perf_counter())

consumer = huey.create_consumer(workers=1, periodic=False, initial_delay=0.001, backoff=1.15, max_delay=0.1)
consumer.start()
rates, pickups = [], []
for _ in range(rounds):
    done.clear()
    begin = time.perf_counter()
    for number in range(count):
        echo(number)
    while len(done) < count:
        time.sleep(0.002)
    rates.append(count / (done[-1] - begin))
for _ in range(30):
    time.sleep(0.15)
    done.clear()
    begin = time.perf_counter()
    echo(0)
    while not done:
        time.sleep(0.0002)
    pickups.append((done[0] - begin) * 1000)
print(json.dumps({"rates": rates, "pickups": pickups}))
consumer.stop(graceful=True)
"""

DBOS = """
import json, sys, time
from dbos import DBOS
path, count, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
url = f"sqlite:///{path}"
DBOS(config={"name": "bench", "system_database_url": url, "run_admin_server": False, "log_level": "ERROR"})

@DBOS.step()
def one(value):
    return value

@DBOS.workflow()
def two_steps(value):
    one(value)
    return one(value)

started = []

@DBOS.workflow()
def mark():
    started.append(time.perf_counter())

DBOS.launch()
DBOS.register_queue("q")
queue = DBOS.retrieve_queue("q")
rates, pickups = [], []
for _ in range(rounds):
    begin = time.perf_counter()
    for number in range(count):
        two_steps(number)
    rates.append(2 * count / (time.perf_counter() - begin))
for _ in range(5):
    started.clear()
    begin = time.perf_counter()
    queue.enqueue(mark).get_result()
    pickups.append((started[0] - begin) * 1000)
print(json.dumps({"rates": rates, "pickups": pickups}))
DBOS.destroy()
"""


def run(script: str, count: int, rounds: int) -> dict[str, list[float]]:
    """Runs a peer in a process of its own on a fresh file: hops a second of each round, and idle pickups in ms."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(Path(folder) / "peer.db"), str(count), str(rounds)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=folder,
        )
    if done.returncode:
        raise RuntimeError(f"the peer failed: {done.stderr[-2000:]}")
    result: dict[str, list[float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
