"""Measures the servers of the testing kit and writes docs/reference/servers.md.

    python tools/server_table.py            # what is installed here
    python tools/server_table.py redis otlp # these; rows of others stay as they are
    python tools/server_table.py --page     # none: the page again, with the numbers that it has

Each server is started three times in a folder of its own; the table has the medians. Nothing is installed by it.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from groundplane.testing.servers import installing
from groundplane.testing.servers.catalog import LIGHT, MODULES, server
from groundplane.testing.servers.contract import Server
from groundplane.testing.servers.handles import KeeperClient
from groundplane.testing.servers.instance import Instance, temporary_folder
from groundplane.testing.servers.together import open_all

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "servers.md"
ROUNDS = 3
_DATA = re.compile(r"<!-- measured: (.*?) -->", re.DOTALL)


def main() -> int:
    names = [name for name in sys.argv[1:] if name != "--page"] or ([] if sys.argv[1:] else list(MODULES))
    rows = measured_before()
    if names:
        rows["machine"] = f"{os.cpu_count()} cores ({platform.machine()}, {_system()})"
    for name in names:
        plan = installing.plan(name)
        if plan.installed is None:
            print(f"{name}: not installed; its row stays as it was")
            continue
        rows[name] = measured(name)
        print(name, rows[name])
        PAGE.write_text(page(rows), encoding="utf-8")
    if not sys.argv[1:]:
        rows["light"] = together()
        print("light", rows["light"])
    PAGE.write_text(page(rows), encoding="utf-8")
    return 0


def measured(name: str) -> dict[str, Any]:
    """Medians of one server's life: ready after the first start and after a kill, memory then, seconds to end."""
    first, again, ended, memory = [], [], [], []
    version = origin = ""
    load = os.getloadavg()[0]
    for _ in range(ROUNDS):
        with Instance.open(name) as one:
            version, origin = one.version, one.origin
            first.append(one.ready_s)
            memory.append(one.memory_bytes())
            one.kill()
            one.start()
            again.append(one.ready_s)
            started = time.monotonic()
            one.stop()
            ended.append(time.monotonic() - started)
    return {
        "version": version, "origin": origin, "date": datetime.now(UTC).date().isoformat(),
        "ready_s": round(statistics.median(first), 2), "again_s": round(statistics.median(again), 2),
        "stop_s": round(statistics.median(ended), 2), "memory_mb": round(statistics.median(memory) / 1e6),
        "load": round(load, 1),
    }  # fmt: skip


def together() -> dict[str, Any]:
    """How long all the light servers take, started side by side as `groundplane servers up` does."""
    seconds, memory = [], []
    for n in range(ROUNDS):
        keeper = KeeperClient(Path(temporary_folder()) / f"groundplane-table-{os.getpid()}-{n}", owner=os.getpid())
        try:
            started = time.monotonic()
            handles, errors = open_all(keeper, LIGHT, {})
            seconds.append(time.monotonic() - started)
            memory.append(sum(one.memory_bytes() for one in handles.values()))
            if errors:
                raise next(iter(errors.values()))
        finally:
            keeper.shut()
    return {
        "date": datetime.now(UTC).date().isoformat(), "ready_s": round(statistics.median(seconds), 1),
        "memory_mb": round(statistics.median(memory) / 1e6),
    }  # fmt: skip


def measured_before() -> dict[str, Any]:
    """The numbers that the page carries, as JSON in a comment."""
    found = _DATA.search(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else None
    before: dict[str, Any] = json.loads(found[1]) if found else {}
    return before


def page(rows: dict[str, Any]) -> str:
    """The whole page."""
    light = rows.get("light")
    ordered = sorted(rows.keys() - {"light", "machine"}, key=lambda n: (list(MODULES).index(n.partition("@")[0]), n))
    parts = [
        f"<!-- written by tools/server_table.py; do not edit -->\n<!-- measured: {json.dumps(rows)} -->\n",
        "# Servers of the testing kit\n",
        "Native processes on loopback, each with its own folder. `groundplane servers install NAME` brings one, "
        "`groundplane servers up NAME` starts it; how tests use them is told in the how-to.\n",
        "## Measured\n",
        f"Medians of {ROUNDS} starts on {rows['machine']}, by "
        "`python tools/server_table.py`. *Ready* counts from the start of the first process until the server does what "
        "its clients need, with the making of its data folder; *after a kill* the same on the data that SIGKILL left. "
        "Memory is the resident set of the server's processes when it is ready, shared pages counted once, without "
        "its companions (RabbitMQ's port mapper, the etcd of Kubernetes' API server). *Load* is how many processes "
        "wanted a core before: times are worth comparing where it is low.\n",
        _table(
            ("server", "version", "origin", "ready", "after a kill", "ends in", "memory", "load", "date"),
            [_cells(name, rows[name]) for name in ordered],
        ),
    ]
    if light:
        parts.append(
            f"The light ones ({', '.join(LIGHT)}), started side by side: all ready after {light['ready_s']} s, "
            f"{light['memory_mb']} MB together ({light['date']}).\n"
        )
    return "\n".join([*parts, "## Where each comes from\n", *(described(server(name)) for name in MODULES)])


def _cells(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    times = (f"{row[word]:.2f} s" for word in ("ready_s", "again_s", "stop_s"))
    return (
        name,
        row["version"],
        row["origin"],
        *times,
        f"{row['memory_mb']} MB",
        str(row.get("load", "-")),
        row["date"],
    )


def described(one: Server) -> str:
    """One server: what its module says of it, its sources, options and variables."""
    told = inspect.getdoc(sys.modules[type(one).__module__]) or ""
    parts = [f"### {one.name}\n", told + "\n"]
    rows = [(s.version, s.origin, f"`{s.command}`", f"{s.size_mb} MB", f"{s.seconds} s") for s in one.sources()]
    parts.append(_table(("version", "origin", "by", "about", "takes about"), rows))
    if one.needs:
        parts.append(f"Needs: {', '.join(one.needs)}, which `install` brings too.\n")
    if one.options:
        parts.append(_table(("option", "what it does"), [(f"`{name}`", words) for name, words in one.options.items()]))
    variables = (f"GROUNDPLANE_TEST_{one.name.upper()}_URL", *one.customary)
    parts.append(f"Variables: {', '.join(f'`{name}`' for name in variables)}.\n")
    return "\n".join(parts)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(header)]
    lines += [("---",) * len(lines[0]), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _system() -> str:
    try:
        told = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        told = platform.system()
    return told


if __name__ == "__main__":
    sys.exit(main())
