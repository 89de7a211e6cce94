"""Breaks the product in named ways and checks that the tests notice each (`make mutants`).

`tools/mutants.toml` lists the mutants: a text of one file and its replacement, and the tests that must fail then. Every
mutant runs in a copy of the working tree. It is *killed* when the tests fail (or hang beyond the limit); it *survived*
when they pass; it is *stale* when the text is no longer there exactly once, and *invalid* when the tests cannot even be
collected. First all named tests run unbroken: tests that fail anyway prove nothing. Exit 1 unless all are killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("src", "tests", "tools", "examples", "docs/requirements.toml", "pyproject.toml", "README.md", "LICENSE")
TIMEOUT_S = 120.0
ACCEPTED = {"name", "file", "find", "replace", "tests", "timeout_s"}


@dataclass(frozen=True, kw_only=True)
class Mutant:
    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    """What follows `pytest` on the command line: node ids, `-k` expressions."""
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True, kw_only=True)
class Outcome:
    mutant: Mutant
    state: str
    seconds: float
    output: str = field(repr=False, default="")


def read(source: Path) -> list[Mutant]:
    """The mutants of the file; a malformed one ends the program with its name."""
    mutants: list[Mutant] = []
    for number, one in enumerate(tomllib.loads(source.read_text(encoding="utf-8")).get("mutant", []), 1):
        name = one.get("name", f"number {number}")
        if unknown := set(one) - ACCEPTED:
            raise SystemExit(f"mutant {name}: unknown keys {sorted(unknown)}")
        if missing := ACCEPTED - {"timeout_s"} - set(one):
            raise SystemExit(f"mutant {name}: missing keys {sorted(missing)}")
        if not one["tests"] or one["find"] == one["replace"]:
            raise SystemExit(f"mutant {name}: tests must not be empty, and replace must differ from find")
        mutants.append(Mutant(**one | {"tests": tuple(one["tests"])}))
    names = [m.name for m in mutants]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise SystemExit(f"mutants with the same name: {twice}")
    return mutants


def copy_tree(root: Path, target: Path) -> None:
    for name in COPIED:
        origin = root / name
        if origin.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".*cache", ".groundplane")
            shutil.copytree(origin, target / name, ignore=ignored)
        elif origin.exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(origin, target / name)


@contextmanager
def applied(mutant: Mutant, tree: Path) -> Iterator[bool]:
    """The mutant's change in the tree for the time of the block; yields whether its text was found exactly once."""
    target = tree / mutant.file
    original = target.read_text(encoding="utf-8") if target.is_file() else ""
    if original.count(mutant.find) != 1:
        yield False
        return
    target.write_text(original.replace(mutant.find, mutant.replace), encoding="utf-8")
    try:
        yield True
    finally:
        target.write_text(original, encoding="utf-8")


def pytest_run(tree: Path, selection: Sequence[str], timeout_s: float) -> tuple[int | None, str]:
    """Exit code (None: out of time) and output of pytest in the tree; its processes are gone afterwards."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection]
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _end_group(process)
        return None, process.communicate()[0]
    _end_group(process)
    return process.returncode, output


def _end_group(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # nothing of it is left


def judge(mutant: Mutant, tree: Path) -> Outcome:
    started = time.monotonic()
    with applied(mutant, tree) as found:
        if not found:
            return Outcome(mutant=mutant, state="stale", seconds=0.0)
        code, output = pytest_run(tree, mutant.tests, mutant.timeout_s)
    states = {0: "survived", 1: "killed", None: "killed (hung)"}
    return Outcome(mutant=mutant, state=states.get(code, "invalid"), seconds=time.monotonic() - started, output=output)


def judge_all(mutants: Sequence[Mutant], root: Path, jobs: int) -> list[Outcome]:
    """Runs all mutants, each in one of `jobs` copies of the tree, and prints each outcome as it comes."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            tree = Path(folder) / str(number)
            copy_tree(root, tree)
            trees.put(tree)

        def one(mutant: Mutant) -> Outcome:
            tree = trees.get()
            try:
                outcome = judge(mutant, tree)
            finally:
                trees.put(tree)
            print(f"{outcome.state:<14} {outcome.seconds:6.1f} s  {mutant.name}", flush=True)
            return outcome

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(one, mutants))


def unbroken(mutants: Sequence[Mutant], root: Path) -> str | None:
    """Runs every selection once without a change; returns the output of the first that does not pass."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder) / "tree"
        copy_tree(root, tree)
        for selection in _selections(mutants):
            code, output = pytest_run(tree, selection, 600)
            if code != 0:
                return f"pytest {' '.join(selection)}\n{output}"
    return None


def _selections(mutants: Sequence[Mutant]) -> list[tuple[str, ...]]:
    """Plain node ids in one run, everything with options in a run of its own."""
    plain = dict.fromkeys(t for m in mutants if not any(t.startswith("-") for t in m.tests) for t in m.tests)
    special = dict.fromkeys(m.tests for m in mutants if any(t.startswith("-") for t in m.tests))
    return ([tuple(plain)] if plain else []) + list(special)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--list", type=Path, default=None, help="the file of mutants (tools/mutants.toml)")
    parser.add_argument("--only", default="", help="only mutants whose name contains this text")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-baseline", action="store_true", help="skip the unbroken run")
    parser.add_argument("--stale", action="store_true", help="only check that every text is still there")
    options = parser.parse_args(arguments)
    mutants = [m for m in read(options.list or options.root / "tools" / "mutants.toml") if options.only in m.name]
    if options.stale:
        stale = [m.name for m in mutants if not _present(m, options.root)]
        print(f"{len(mutants)} mutants, {len(stale)} stale: {', '.join(stale)}")
        return 1 if stale else 0
    if not options.no_baseline and (failure := unbroken(mutants, options.root)) is not None:
        print(f"{failure}\nthese tests fail without any mutant, so they prove nothing")
        return 1
    outcomes = judge_all(mutants, options.root, options.jobs)
    bad = [o for o in outcomes if not o.state.startswith("killed")]
    for outcome in bad:
        print(f"\n--- {outcome.state}: {outcome.mutant.name} ({outcome.mutant.file})\n{outcome.output[-2000:]}")
    print(f"{len(outcomes) - len(bad)} of {len(outcomes)} mutants killed")
    return 1 if bad else 0


def _present(mutant: Mutant, root: Path) -> bool:
    target = root / mutant.file
    return target.is_file() and target.read_text(encoding="utf-8").count(mutant.find) == 1


if __name__ == "__main__":
    raise SystemExit(main())
