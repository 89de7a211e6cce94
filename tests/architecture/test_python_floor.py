"""Python 3.11 is enough: nothing in the sources is newer, neither the grammar nor what is taken from the library."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator

import pytest

from architecture.modules import modules

pytestmark = pytest.mark.req("CORE-04.3")

FLOOR = (3, 11)


def test_the_grammar_is_that_of_python_3_11() -> None:
    for module in modules():
        ast.parse(module.path.read_text(encoding="utf-8"), filename=str(module.path), feature_version=FLOOR)


@pytest.mark.parametrize("source", ["type Pair = tuple[int, int]", "def f[T](x: T) -> T: return x", "class C[T]: ..."])
def test_newer_grammar_would_be_noticed(source: str) -> None:
    with pytest.raises(SyntaxError):
        ast.parse(source, feature_version=FLOOR)


@pytest.mark.skipif(sys.version_info[:2] != FLOOR, reason="only Python 3.11 itself knows what it has")
def test_what_is_taken_from_the_standard_library_is_there_in_python_3_11() -> None:
    taken = {(name, attribute) for module in modules() for name, attribute in _taken(module.tree)}
    assert len(taken) > 200
    assert [f"{name}.{attribute}" for name, attribute in sorted(taken) if not _is_there(name, attribute)] == []


def test_a_newer_name_would_be_noticed() -> None:
    newer = "import itertools as i\nfrom typing import override, Any\nimport os.path\ni.batched\nos.path.splitroot"
    assert set(_taken(ast.parse(newer))) == {
        ("itertools", ""), ("itertools", "batched"), ("typing", "override"), ("typing", "Any"), ("os.path", ""),
        ("os", "path"), ("os.path", "splitroot"),
    }  # fmt: skip
    assert not _is_there("nothing_of_this_name", "")
    assert not _is_there("itertools", "nothing_of_this_name")


def _taken(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Modules of the standard library that are imported, with "", and what is taken from each."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _of_library(alias.name):
                    yield alias.name, ""
                    names[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level and _of_library(node.module):
            for alias in node.names:
                yield node.module, alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            first, dot, rest = owner.partition(".")
            module = f"{names.get(first, '')}{dot}{rest}"
            if first in names and (not rest or module in sys.modules):
                yield module, node.attr


def _of_library(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names and module != "__future__"


def _is_there(module: str, attribute: str) -> bool:
    try:
        found = importlib.import_module(module)
        if attribute and not hasattr(found, attribute):
            importlib.import_module(f"{module}.{attribute}")
    except ImportError:
        return False
    return True
