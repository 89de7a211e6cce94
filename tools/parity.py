"""Writes docs/reference/parity.md: what each driver does, from a run of the suites on all of them.

    python tools/parity.py [--reports FOLDER] [--write]

Starts RabbitMQ, PostgreSQL, MinIO and versitygw with the testing kit, runs `groundplane conformance` on each port and
driver, and puts the reports side by side: a row for each requirement, a column for each driver. With `--reports` the
JSON reports are kept in the folder, and those that are there already are not run again. Exit 1 where a test failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "parity.md"
DRIVERS: dict[str, dict[str, str | None]] = {
    "queues": {"embedded": None, "RabbitMQ": "rabbitmq"},
    "jobs": {"embedded": None, "PostgreSQL": "postgres"},
    "ledger": {"embedded": None, "PostgreSQL": "postgres"},
    "security": {"embedded": None, "PostgreSQL": "postgres"},
    "blobs": {"embedded": None, "S3 (MinIO)": "s3", "S3 (versitygw)": "s3@versitygw"},
}
_CAPABLE = ("queues", "blobs")
_NOTE = "<!-- written by tools/parity.py from a run of the suites; do not edit -->"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, help="keep the JSON reports here")
    parser.add_argument("--write", action="store_true", help="write the page; else it is printed")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = options.reports or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = _run_all(folder, stack)
    text = page(found, tomllib.loads((ROOT / "docs" / "requirements.toml").read_text(encoding="utf-8")))
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)
    failed = [(port, driver) for port, one in found.items() for driver, report in one.items() if not report["passed"]]
    for port, driver in failed:
        print(f"{port} on {driver}: broken promises", file=sys.stderr)
    return 1 if failed else 0


def _run_all(folder: Path, stack: ExitStack) -> dict[str, dict[str, Any]]:
    from groundplane.testing.servers.instance import Instance

    urls: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {}
    for port, drivers in DRIVERS.items():
        for driver, server in drivers.items():
            file = folder / f"{port}-{server or 'embedded'}.json"
            if not file.exists():
                if server is not None and server not in urls:
                    urls[server] = stack.enter_context(Instance.open(server)).url
                url = "embedded://" if server is None else _url_of(server, urls[server])
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(_run(port, url), indent=1) + "\n")
            found.setdefault(port, {})[driver] = json.loads(file.read_text())
    return found


def _url_of(server: str, url: str) -> str:
    return f"s3://parity?create=true&endpoint={url}" if server.startswith("s3") else url


def _run(port: str, url: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "groundplane.cli", "conformance", port, url, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=1800)
    if not done.stdout:
        raise SystemExit(f"{port} on {url.partition('://')[0]}: no report (exit code {done.returncode})")
    report: dict[str, Any] = json.loads(done.stdout)
    if port in _CAPABLE:
        report["capabilities"] = asyncio.run(_capabilities(port, url))
    return report


async def _capabilities(port: str, url: str) -> dict[str, bool]:
    """Each capability of the port by name, and whether the driver declares it."""
    from groundplane.blobs import Blobs
    from groundplane.queues import Queues

    opener: Any = Queues.open if port == "queues" else Blobs.open
    with tempfile.TemporaryDirectory() as state:
        async with opener(url, state=Path(state)) as opened:
            declared = opened.driver.capabilities
            return {str(one.name): one in declared for one in type(declared) if one.value}


def page(found: dict[str, dict[str, Any]], requirements: dict[str, Any]) -> str:
    """The tables as Markdown."""
    lines = [_NOTE, "# What each driver does", "", _INTRO, ""]
    for port, reports in found.items():
        lines += [f"## {port.capitalize()}", "", *_table(reports, requirements), ""]
    return "\n".join(lines)


_INTRO = """The same suite runs on every driver of a port. A cell tells how many of its tests passed there; `n of m`
tells that some were skipped: a server is not restarted in this run (the repository's own tests do that, on servers of
their own), and what is about a capability is tested where a driver declares it. Elsewhere the suite asserts that it is
refused with `unsupported`. `python tools/parity.py --write` makes this page."""


def _table(reports: dict[str, Any], requirements: dict[str, Any]) -> Iterator[str]:
    yield f"| | {' | '.join(reports)} |"
    yield f"|---|{'---|' * len(reports)}"
    for name in sorted({one for report in reports.values() for one in _requirements_of(report)}):
        yield f"| {name} {_text(name, requirements)} | {' | '.join(_cell(one, name) for one in reports.values())} |"
    for name in next(iter(reports.values())).get("capabilities", {}):
        cells = ("yes" if one["capabilities"][name] else "no" for one in reports.values())
        yield f"| capability `{name}` | {' | '.join(cells)} |"
    totals = (f"{one['counts']['passed']} of {len(one['tests'])}, {one['seconds']:.0f} s" for one in reports.values())
    yield f"| all tests | {' | '.join(totals)} |"
    versions = (f"{one['groundplane']} on {one['begun_at'][:10]}" for one in reports.values())
    yield f"| version | {' | '.join(versions)} |"


def _requirements_of(report: dict[str, Any]) -> set[str]:
    return {one.partition(".")[0] for test in report["tests"] for one in test["requirements"]}


def _cell(report: dict[str, Any], name: str) -> str:
    outcomes = [
        test["outcome"]
        for test in report["tests"]
        if any(one.partition(".")[0] == name for one in test["requirements"])
    ]
    passed = outcomes.count("passed")
    if "failed" in outcomes:
        return f"**{outcomes.count('failed')} failed** of {len(outcomes)}"
    return f"✓ {passed}" if passed == len(outcomes) else f"✓ {passed} of {len(outcomes)}" if passed else "not run"


def _text(name: str, requirements: dict[str, Any]) -> str:
    text = " · ".join(requirements[name]["clauses"]).replace("|", "∣").replace("\n", " ")
    return text if len(text) <= 110 else f"{text[:107].rsplit(' ', 1)[0]} …"


if __name__ == "__main__":
    sys.exit(main())
