"""`make soak`: the fault tests with many rounds, and the table of what was survived (docs/reference/soak.md).

`--rounds N` of each window and stack (there are nine on NATS alone), `--outage S` seconds for which servers are away,
`--fuzz N` cases of mutated JSON-RPC (`--select fuzz` or `--select mutated` runs those alone). The tests are the ones of
`make test`; only the numbers differ. Exit 1 when a test failed: the table is written all the same, and says so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "reference" / "soak.md"
_HEAD = """# Soak

`make soak` kills every process of a plane, and kills, pauses, cuts off, slows and restarts every server, in every
window of a message, while customers order. The table has what the run below came to. After each round old orders must
have ended; after each test the books are audited: nothing lost, no keyed effect twice, no terminal state changed,
queues and outbox empty, nothing left behind. The second table is of RabbitMQ and NATS alone, under queues, the bus,
keys, heartbeats and leadership: what was confirmed is there once, and at most one is active. What is guaranteed and
what is not: [guarantees](../explanation/guarantees.md).
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=130, help="of each window (130)")
    parser.add_argument("--outage", type=float, default=30.0, help="seconds for which a server is away (30)")
    parser.add_argument("--workers", type=int, default=2, help="tests at once (2)")
    parser.add_argument("--fuzz", type=int, default=1_000_000, help="cases of mutated JSON-RPC; 0: none (1000000)")
    parser.add_argument("--fuzz-minutes", type=float, default=60.0, help="at most so long (60)")
    parser.add_argument("--seed", type=int, help="of the fuzzers; a new one otherwise")
    parser.add_argument("--select", default="", help="a pytest -k expression")
    parser.add_argument("--log", type=Path, help="a file that keeps what runs did; the table has all of them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = (given.log or Path(folder) / "soak.jsonl").absolute()
        started = time.monotonic()
        code = _run(given, log)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"code": code, "seconds": time.monotonic() - started}) + "\n")
        facts = [json.loads(line) for line in log.read_text().splitlines()]
    TABLE.write_text(_page(facts, given), encoding="utf-8")
    print(f"{TABLE.relative_to(ROOT)} is written")
    return 1 if code else 0


def _run(given: argparse.Namespace, log: Path) -> int:
    environment = {
        **os.environ,
        "GROUNDPLANE_TEST_FAULT_ROUNDS": str(given.rounds),
        "GROUNDPLANE_TEST_OUTAGE_S": str(given.outage),
        "GROUNDPLANE_TEST_SOAK_LOG": str(log),
        "GROUNDPLANE_REQUIRE_SERVERS": os.environ.get("GROUNDPLANE_REQUIRE_SERVERS", "rabbitmq,postgres,s3,nats"),
    }
    chosen = ["-k", given.select] if given.select else []
    if given.fuzz:
        environment |= {
            "GROUNDPLANE_TEST_FUZZ_CASES": str(given.fuzz),
            "GROUNDPLANE_TEST_FUZZ_S": str(given.fuzz_minutes * 60),
            "GROUNDPLANE_TEST_FUZZ_EXAMPLES": str(max(15, given.fuzz // 1000)),
            "GROUNDPLANE_TEST_FUZZ_SEED": str(given.seed if given.seed is not None else time.time_ns() % 2**32),
        }
    folders = "tests/fault tests/fuzz" if given.fuzz else "tests/fault"
    how = f"-q -p no:cacheprovider --timeout=0 -n {given.workers} --dist worksteal {folders}"
    command = [sys.executable, "-m", "pytest", *how.split(), *chosen]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def _page(log: list[dict[str, Any]], given: argparse.Namespace) -> str:
    day = datetime.datetime.now(datetime.UTC).date()
    facts, runs = [one for one in log if "stack" in one], [one for one in log if "code" in one]
    facts.sort(key=lambda one: str(one["stack"]))
    parts = [one for one in log if "rounds" in one]
    rounds = sum(int(one["hits"]) for one in facts) + sum(int(one["rounds"]) for one in parts)
    seconds = sum(float(one["seconds"]) for one in runs)
    codes = sorted({int(one["code"]) for one in runs})
    passed = "all tests passed" if codes == [0] else f"**pytest ended with {codes}**"
    lines = [
        _HEAD,
        f"Run of {day}: {rounds} rounds in {seconds / 60:.0f} minutes; {passed}. "
        f"Reproduce: `make soak ARGS='--rounds {given.rounds} --outage {given.outage:g}'`.",
        "",
        "| stack | window | rounds | seed | victims | slowest recovery | jobs | attempts again |",
        "|---|---|---:|---:|---|---:|---:|---:|",
    ]
    lines += [
        f"| {one['stack']} | {one['window']} | {one['hits']} | {one['seed']} | {one['victims']} | "
        f"{one['slowest_s']:.1f} s | {one['jobs']} | {one['again']} |"
        for one in facts
    ]
    if parts:
        lines += [
            "",
            "| alone | rounds | seed | faults | slowest recovery | minutes |",
            "|---|---:|---:|---|---:|---:|",
        ]
    lines += [
        f"| {one['test']} | {one['rounds']} | {one['seed']} | "
        f"{', '.join(f'{name} {hits}' for name, hits in sorted(one.get('hits', {}).items()))} | "
        f"{one['slowest_s']:.1f} s | {one['seconds'] / 60:.1f} |"
        for one in sorted(parts, key=lambda one: str(one["test"]))
    ]
    fuzzed = [one for one in log if str(one.get("test", "")).startswith("fuzz-")]
    if fuzzed:
        lines += ["", "| fuzzed | cases | reached a handler | seed | minutes |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {str(one['test'])[5:]} | {one['cases']:,} | {one['reached'] / one['cases']:.0%} | {one['seed']} | "
        f"{one['seconds'] / 60:.1f} |"
        for one in fuzzed
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
