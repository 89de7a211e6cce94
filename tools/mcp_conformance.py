"""The official conformance suite of the Model Context Protocol, against a plane that serves `examples/mcp_conformance`.

    python tools/mcp_conformance.py                  run all, show the score
    python tools/mcp_conformance.py --write          and write docs/reference/mcp-conformance.md

The suite and the Node that it needs come from npm once, as `mcp_suite/package-lock.json` pins them by hash, into the
cache of the kit's servers. Every scenario that a revision requires must pass without a warning, as must those of the
tasks extension and those that the suite itself calls pending: there is no list of expected failures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "mcp-conformance.md"
EXAMPLE = ROOT / "examples" / "mcp_conformance"
LOCK = Path(__file__).with_name("mcp_suite")
SUITE = "@modelcontextprotocol/conformance"
REVISIONS = {"2025-11-25": 30, "2026-07-28": 37}
"""The scenarios of servers that each revision requires, as the suite counts them."""
START_S, RUN_S = 180.0, 300.0
_RUN_AT = re.compile(r"-\d{4}-\d\d-\d\dT[\d-]+Z$")
NOT_RUN = {
    "sep-2575-server-sends-prompts-list-changed-on-subscription": "The list of prompts changes with a new App alone, "
    "for which the gateway starts anew; so `prompts.listChanged` is not advertised.",
    "tasks-status-notifications": "The suite has no check here yet. `tests/wire/test_mcp_tasks.py` has.",
}
"""Checks that the suite skips, and why that is right."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One scenario in one revision: how many checks ended how, and what is wrong."""

    revision: str
    name: str
    required: bool
    counts: dict[str, int]
    problems: tuple[str, ...]
    skipped: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether there was a check, and nothing but success."""
        return not self.problems and (self.counts.get("SUCCESS", 0) > 0 or set(self.skipped) <= set(NOT_RUN))


def installed() -> Path:
    """The folder with `node_modules`, installed where it is not there. Raises `InstallFailed` with npm's words."""
    from groundplane.testing.servers.cache import build, cache_folder, locked
    from groundplane.testing.servers.npm import npm_ci

    digest = hashlib.sha256((LOCK / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder = cache_folder() / f"mcp-conformance-{digest}"

    def report(words: str) -> None:
        print(f"the suite: {words}", file=sys.stderr)

    with locked(folder):
        if not folder.is_dir():
            build(folder, lambda half: npm_ci(LOCK, half, report), report)
    return folder


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a plane with the example's App in `folder`, actors in processes of their own."""
    app = folder / "app"
    shutil.copytree(EXAMPLE, app, ignore=shutil.ignore_patterns("__pycache__", ".groundplane"))
    command = [sys.executable, "-m", "groundplane.cli", "dev", "app:app", "--port", "0", "--json"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GROUNDPLANE_")}
    with (folder / "dev.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=app, env=kept, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said = json.loads(line)
                if said.get("event") == "ready":
                    yield said["url"]
                    return
            raise RuntimeError(f"the plane did not start: {(folder / 'dev.log').read_text()[-2000:]}")
        finally:
            process.terminate()
            process.communicate(timeout=60)


def run(url: str, revision: str, folder: Path) -> list[Scenario]:
    """All scenarios of a revision, those that it does not require too. `url` is the gateway's.

    The suite waits no longer than 0.8 s for some messages, which a busy machine outlasts: where a scenario had
    problems, all are run once more, and the better run of each counts.
    """
    found = _run(url, revision, folder / "first")
    if not any(one.problems for one in found):
        return found
    again = {one.name: one for one in _run(url, revision, folder / "again")}
    return [min(one, again.get(one.name, one), key=lambda run: len(run.problems)) for one in found]


def _run(url: str, revision: str, folder: Path) -> list[Scenario]:
    home, mcp = installed() / "node_modules", f"{url.replace('127.0.0.1', 'localhost')}/mcp"
    command = [
        str(home / ".bin" / "node"), str(home / SUITE / "dist" / "index.js"), "server",
        "--url", mcp, "--requirements", revision, "--output-dir", str(folder),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    _, _, unscored = done.stdout.partition("Not scored for")
    found = [_scenario(path, revision, unscored) for path in sorted(folder.glob("*/checks.json"))]
    if not found:
        raise RuntimeError(f"the suite ran nothing: {done.stdout[-1000:]} {done.stderr[-1000:]}")
    return found


def _scenario(path: Path, revision: str, unscored: str) -> Scenario:
    checks: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    name = _RUN_AT.sub("", path.parent.name.removeprefix("server-"))
    wrong = [one for one in checks if one["status"] in ("FAILURE", "WARNING")]
    return Scenario(
        revision=revision,
        name=name,
        required=f" {name} (" not in unscored,
        counts=dict(Counter(one["status"] for one in checks)),
        problems=tuple(f"{one['status']} {one['id']}: {one.get('errorMessage', '')}" for one in wrong),
        skipped=tuple(one["id"] for one in checks if one["status"] == "SKIPPED"),
    )


def run_all(folder: Path) -> list[Scenario]:
    """Both revisions against one plane."""
    installed()
    with served(folder) as url:
        return [one for revision in REVISIONS for one in run(url, revision, folder / revision)]


def problems(found: Sequence[Scenario]) -> list[str]:
    """What is wrong with a run: failures and warnings, checks that were skipped without a reason, reasons of checks
    that were not skipped, scenarios that are missing.
    """
    wrong = [f"{one.revision} {one.name}: {what}" for one in found for what in one.problems]
    wrong += [f"{one.revision} {one.name}: no check succeeded" for one in found if not one.passed and not one.problems]
    skipped = {check for one in found for check in one.skipped}
    wrong += [f"{check}: skipped without a reason" for check in sorted(skipped - NOT_RUN.keys())]
    wrong += [f"{check}: is not skipped any more, take it out of NOT_RUN" for check in sorted(NOT_RUN.keys() - skipped)]
    for revision, count in REVISIONS.items():
        required = sum(one.required for one in found if one.revision == revision)
        if required != count:
            wrong.append(f"{revision}: {required} required scenarios were run, not {count}")
    return wrong


def page(found: Sequence[Scenario]) -> str:
    """The score as Markdown."""
    version = json.loads((LOCK / "package.json").read_text())["dependencies"][SUITE]
    out = [
        "# MCP conformance",
        "",
        f"The score of the official suite, `{SUITE}` {version}, against a plane that serves",
        "`examples/mcp_conformance`: every call is a durable job that actors in their own processes work on. Made by",
        "`python tools/mcp_conformance.py --write`; continuous integration runs the same and fails on any difference.",
        "A scenario passes when all its checks succeed without a warning. No failure is expected, and none is listed.",
        "",
        "| revision | required scenarios | passed | other scenarios | passed | checks |",
        "|---|---|---|---|---|---|",
    ]
    for revision in REVISIONS:
        mine = [one for one in found if one.revision == revision]
        required, other = [one for one in mine if one.required], [one for one in mine if not one.required]
        checks = sum(one.counts.get("SUCCESS", 0) for one in mine)
        out.append(
            f"| {revision} | {len(required)} | {sum(one.passed for one in required)} | {len(other)} "
            f"| {sum(one.passed for one in other)} | {checks} |"
        )
    for revision in REVISIONS:
        out += ["", f"## {revision}", "", "| scenario | required | checks | passed |", "|---|---|---|---|"]
        for one in sorted(
            (one for one in found if one.revision == revision), key=lambda one: (not one.required, one.name)
        ):
            verdict = "yes" if one.passed and one.counts.get("SUCCESS") else "nothing to check" if one.passed else "no"
            out.append(
                f"| {one.name} | {'yes' if one.required else 'no'} | {one.counts.get('SUCCESS', 0)} | {verdict} |"
            )
    out += ["", "## Checks that are not run", "", "| check | why |", "|---|---|"]
    out += [f"| `{check}` | {why} |" for check, why in sorted(NOT_RUN.items())]
    return "\n".join(out) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, show, and with `--write` keep the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the page of the documentation")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="groundplane-mcp-") as folder:
        found = run_all(Path(folder))
    wrong = problems(found)
    for one in found:
        print(f"{'ok  ' if one.passed else 'FAIL'} {one.revision} {one.name} {one.counts.get('SUCCESS', 0)}")
    for what in wrong:
        print(what, file=sys.stderr)
    if chosen.write and not wrong:
        PAGE.write_text(page(found), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
