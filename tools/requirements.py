"""Lists every requirement, clause by clause, with the tests that prove it (`make requirements`).

The tests are found by collecting them with pytest, so inherited conformance suites, marks of classes and modules and
parametrised marks all count. A clause is proved by a test marked with the clause, or with the requirement when that has
one clause only. Exit 1: a test names an unknown id, the tests cannot be collected, or `--strict` and a clause that
applies now is proved by nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Clause:
    id: str
    applies: str
    text: str
    proofs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Requirement:
    id: str
    source: str
    applies: str
    origin: tuple[str, ...]
    clauses: tuple[Clause, ...]
    proofs: tuple[str, ...]
    """Tests marked with the plain id of a requirement that has several clauses."""

    @property
    def proved(self) -> bool:
        return bool(self.proofs) or any(clause.proofs for clause in self.clauses)


def read(source: Path, proofs: Mapping[str, Iterable[str]]) -> list[Requirement]:
    """The requirements of the file, joined with the tests by id."""
    listed = tomllib.loads(source.read_text(encoding="utf-8"))
    return [_requirement(name, one, proofs) for name, one in listed.items()]


def _requirement(name: str, one: Mapping[str, object], proofs: Mapping[str, Iterable[str]]) -> Requirement:
    texts = one["clauses"]
    if not isinstance(texts, list) or not texts:
        raise SystemExit(f"{name}.clauses: {texts!r} is not a list with at least one text")
    if one.get("applies") not in ("now", "later"):
        raise SystemExit(f"{name}.applies: {one.get('applies')!r} is neither 'now' nor 'later'")
    whole = tuple(sorted(proofs.get(name, ())))
    single = len(texts) == 1
    later = one.get("later", [])
    if not isinstance(later, list) or not set(later) <= set(range(1, len(texts) + 1)):
        raise SystemExit(f"{name}.later: {later!r} does not list numbers of its {len(texts)} clauses")
    clauses = tuple(
        Clause(
            id=f"{name}.{number}",
            applies="later" if number in later else str(one["applies"]),
            text=text,
            proofs=tuple(sorted({*proofs.get(f"{name}.{number}", ()), *(whole if single else ())})),
        )
        for number, text in enumerate(texts, 1)
    )
    origin = one["origin"]
    assert isinstance(origin, list)
    return Requirement(
        id=name,
        source=str(one["source"]),
        applies=str(one["applies"]),
        origin=tuple(origin),
        clauses=clauses,
        proofs=() if single else whole,
    )


def collect(root: Path) -> dict[str, set[str]]:
    """Runs pytest's collection and returns the tests of every id that a mark names."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "proofs.json"
        environment = os.environ | {
            "GROUNDPLANE_PROOFS_FILE": str(answer),
            "PYTHONPATH": f"{ROOT / 'tools'}{os.pathsep}{ROOT / 'src'}",
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-p",
            "collect_proofs",
            "-p",
            "no:cacheprovider",
        ]
        run = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        if run.returncode not in (0, 5):
            sys.stdout.write(run.stdout + run.stderr)
            raise SystemExit(f"the tests cannot be collected (pytest ended with {run.returncode}), see above")
        found: dict[str, list[str]] = json.loads(answer.read_text(encoding="utf-8"))
    return {name: set(tests) for name, tests in found.items()}


def unknown_ids(requirements: list[Requirement], proofs: Mapping[str, Iterable[str]]) -> list[str]:
    known = {r.id for r in requirements} | {c.id for r in requirements for c in r.clauses}
    return sorted(set(proofs) - known)


def text_report(requirements: list[Requirement], *, verbose: bool) -> str:
    lines: list[str] = []
    for one in requirements:
        lines.append(f"{one.id}  ({one.applies}; {', '.join(one.origin)})")
        lines += [f"    as a whole: {test}" for test in one.proofs]
        for clause in one.clauses:
            state = f"{len(clause.proofs):3d} tests" if clause.proofs else "NO TEST  "
            lines.append(f"  {clause.id:<12} {state}  {clause.text}")
            lines += [f"        {test}" for test in clause.proofs if verbose]
    return "\n".join(lines)


def summary(requirements: list[Requirement]) -> str:
    lines = []
    for applies in ("now", "later"):
        chosen = [r for r in requirements if r.applies == applies]
        clauses = [c for r in requirements for c in r.clauses if c.applies == applies]
        lines.append(
            f"{applies}: {sum(r.proved for r in chosen)} of {len(chosen)} requirements have a test, "
            f"{sum(bool(c.proofs) for c in clauses)} of {len(clauses)} clauses are proved one by one"
        )
    return "\n".join(lines)


def page(requirements: list[Requirement]) -> str:
    """The report as a page of the documentation."""
    out = ["# Requirements and their tests", "", "Generated by `make requirements`. One clause, at least one test.", ""]
    out += [f"* {line}" for line in summary(requirements).splitlines()]
    for source in dict.fromkeys(r.source for r in requirements):
        out += ["", f"## {source}"]
        for one in (r for r in requirements if r.source == source):
            out += ["", f"### {one.id}", "", f"Applies {one.applies}. Origin: {', '.join(one.origin)}.", ""]
            out += [f"* Tested as a whole by {_quoted(one.proofs)}."] if one.proofs else []
            for clause in one.clauses:
                proofs = _quoted(clause.proofs) if clause.proofs else "**no test**"
                out.append(f"* `{clause.id}` {_escaped(clause.text)} — {proofs}")
    return "\n".join(out) + "\n"


def _quoted(tests: Iterable[str]) -> str:
    return ", ".join(f"`{test}`" for test in tests)


def _escaped(text: str) -> str:
    """Angle brackets outside code would be taken for HTML."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;").replace("*", "\\*") for p in parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--applies", choices=("now", "later"), help="only these requirements")
    parser.add_argument("--missing", action="store_true", help="only requirements with an unproved clause")
    parser.add_argument("--verbose", action="store_true", help="name the tests of every clause")
    parser.add_argument("--strict", action="store_true", help="fail when a clause that applies now has no test")
    options = parser.parse_args(arguments)
    proofs = collect(options.root)
    requirements = read(options.root / "docs" / "requirements.toml", proofs)
    if unknown := unknown_ids(requirements, proofs):
        print(f"tests name requirement ids that docs/requirements.toml does not list: {', '.join(unknown)}")
        return 1
    target = options.root / "docs" / "reference" / "requirements.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(requirements), encoding="utf-8")
    unproved = [c.id for r in requirements for c in r.clauses if c.applies == "now" and not c.proofs]
    shown = [r for r in requirements if options.applies in (None, r.applies)]
    if options.missing:
        shown = [r for r in shown if not all(c.proofs for c in r.clauses)]
    print(text_report(shown, verbose=options.verbose))
    print(summary(requirements))
    if unproved:
        print(f"clauses that apply now and have no test ({len(unproved)}): {' '.join(unproved)}")
    return 1 if unproved and options.strict else 0


if __name__ == "__main__":
    raise SystemExit(main())
