"""The pages of parity name tests that exist, and that prove what their rows say."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs/parity").glob("*.md"))
NODE = re.compile(r"`((?:tests|src)/[\w/]+\.py(?:::\w+)+)`")
TWINS = {
    "tests/conformance/test_kv_nats.py::TestNatsKV": "tests/conformance/test_kv_embedded.py::TestEmbeddedKV",
    "tests/conformance/test_bus_nats.py::TestNatsBus": "tests/conformance/test_bus_embedded.py::TestEmbeddedBus",
}
AEGISSDK = [13, 3, 6, 7, 9, 10, 6, 9, 7, 7, 1, 8, 7, 7, 1, 12, 5, 4, 5]
"""The lines of each section of its report: a row for each."""


def _rows() -> list[object]:
    return [
        pytest.param([cell.strip() for cell in line.strip("| \n").split(" | ")], id=f"{page.stem}-{number}")
        for page in PAGES
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        if line.startswith("| ") and not line.startswith("| the report's line")
    ]


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _conformance() -> dict[str, list[tuple[Path, ast.ClassDef]]]:
    """The classes of the suites that third parties run too, by name."""
    found: dict[str, list[tuple[Path, ast.ClassDef]]] = {}
    for path in (ROOT / "src").rglob("*.py"):
        if "conformance" in str(path.relative_to(ROOT)):
            for node in _tree(path).body:
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, []).append((path, node))
    return found


def _suite(base: ast.expr, beside: Path) -> tuple[Path, ast.ClassDef] | None:
    """The class of a suite that another inherits from; of those of one name, the one in the same folder."""
    found = _conformance().get(ast.unparse(base).rpartition(".")[2], [])
    return min(found, key=lambda one: one[0].parent != beside.parent, default=None)


@functools.cache
def _requirements() -> set[str]:
    return set(tomllib.loads((ROOT / "docs/requirements.toml").read_text(encoding="utf-8")))


def _marks(decorators: list[ast.expr]) -> Iterator[str]:
    for decorator in decorators:
        for node in ast.walk(decorator):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.req"):
                yield from (str(one.value) for one in node.args if isinstance(one, ast.Constant))


def _module_marks(path: Path) -> Iterator[str]:
    for node in _tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            yield from _marks([node.value])


def _find(body: list[ast.stmt], name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return next((node for node in body if isinstance(node, kinds) and node.name == name), None)


def _in_class(path: Path, owner: ast.ClassDef, name: str) -> set[str] | None:
    """The requirements of a method of a class or of what it inherits from; None where there is no such method."""
    own = _find(owner.body, name)
    if own is not None:
        return {*_marks(own.decorator_list), *_marks(owner.decorator_list), *_module_marks(path)}
    for base in owner.bases:
        there = _suite(base, path)
        found = _in_class(*there, name) if there is not None else None
        if found is not None:
            return {*found, *_marks(owner.decorator_list), *_module_marks(path)}
    return None


def marked(node_id: str) -> set[str] | None:
    """The requirements that a test is marked with; None where the tree has no such test."""
    file, *names = node_id.split("::")
    path = ROOT / file
    found = _find(_tree(path).body, names[0]) if path.is_file() else None
    if found is None or not names[-1].startswith("test_"):
        return None
    if isinstance(found, ast.ClassDef):
        return _in_class(path, found, names[1]) if len(names) == 2 else None
    return {*_marks(found.decorator_list), *_module_marks(path)} if len(names) == 1 else None


@pytest.mark.parametrize("row", _rows())
def test_each_row_names_requirements_and_the_tests_that_prove_them(row: list[str]) -> None:
    assert len(row) == 3, row
    _, wanted, proof = row
    assert set(wanted.split(", ")) <= _requirements()
    proofs = {node: marked(node) for node in NODE.findall(proof)}
    assert [node for node, marks in proofs.items() if marks is None] == [], "there is no such test"
    assert proofs, "a row without a test"
    marks = {mark.partition(".")[0] for found in proofs.values() for mark in found or ()}
    assert set(wanted.split(", ")) - marks == set(), "none of the tests is marked with it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_proved_on_one_driver_is_proved_on_the_other(page: Path) -> None:
    for node in NODE.findall(page.read_text(encoding="utf-8")):
        owner, _, name = node.rpartition("::")
        if owner in TWINS:
            assert marked(f"{TWINS[owner]}::{name}") is not None, node


def test_no_line_of_a_report_is_left_out() -> None:
    text = (ROOT / "docs/parity/aegissdk.md").read_text(encoding="utf-8")
    sections = re.split(r"^### ", text, flags=re.M)[1:]
    assert [len(re.findall(r"^\| (?!the report's line)", section, re.M)) for section in sections] == AEGISSDK


@pytest.mark.parametrize(
    "node",
    [
        "tests/conformance/test_kv_nats.py::TestNatsKV::test_there_is_no_such_test",
        "tests/conformance/test_kv_nats.py::test_there_is_no_such_test",
        "tests/conformance/test_nowhere.py::test_there_is_no_such_test",
        "tests/conformance/test_kv_nats.py::TestNatsKV",
    ],
)
def test_a_test_that_does_not_exist_is_noticed(node: str) -> None:
    assert marked(node) is None


def test_the_requirements_of_a_test_are_those_of_its_suite_too() -> None:
    inherited = "tests/conformance/test_kv_nats.py::TestNatsKV::test_a_key_that_never_was_is_none"
    assert "KV-01.3" in (marked(inherited) or ())
