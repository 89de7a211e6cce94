"""The source of the product as syntax trees: modules, their imports, their public names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "groundplane"


@dataclass(frozen=True)
class Import:
    """One import statement's target, `lazy` when it stands inside a function."""

    target: str
    line: int
    lazy: bool
    typing_only: bool


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.name.split("."))

    @property
    def area(self) -> str:
        """The folder or module directly under the package: `queues`, `core`, `app`."""
        return self.parts[1] if len(self.parts) > 1 else ""

    @property
    def is_driver(self) -> bool:
        return "drivers" in self.parts and self.path.name != "__init__.py"

    def imports(self) -> list[Import]:
        return list(_imports(self.tree, self.name, self.path.name == "__init__.py", lazy=False, typing_only=False))

    def ports(self) -> list[ast.ClassDef]:
        """Public classes that name `Protocol` among their bases."""
        return [
            node
            for node in self.tree.body
            if isinstance(node, ast.ClassDef)
            and not node.name.startswith("_")
            and any(ast.unparse(base).split("[")[0] in ("Protocol", "typing.Protocol") for base in node.bases)
        ]

    def public(self) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith(
                "_"
            ):
                yield node


def _imports(tree: ast.AST, module: str, package: bool, *, lazy: bool, typing_only: bool) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from _imports(ast.Module([child], []), module, package, lazy=lazy, typing_only=True)
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy, typing_only)
        elif isinstance(node, ast.ImportFrom):
            for target in _from_targets(node, module, package):
                yield Import(target, node.lineno, lazy, typing_only)
        else:
            yield from _imports(node, module, package, lazy=inside, typing_only=typing_only)


def _from_targets(node: ast.ImportFrom, module: str, package: bool) -> list[str]:
    """The full names of what `from x import a, b` binds; a name that is no module is the module itself."""
    base = node.module or ""
    if node.level:
        up = module.split(".")[: None if package and node.level == 1 else -(node.level - int(package)) or None]
        base = ".".join([*up, base]) if base else ".".join(up)
    if not base.startswith("groundplane"):
        return [base]
    known = module_names()
    return [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]


@cache
def module_names() -> frozenset[str]:
    return frozenset(_name(path) for path in PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the package, in the order of its name."""
    found = (
        Module(_name(path), path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
        for path in PACKAGE.rglob("*.py")
    )
    return tuple(sorted(found, key=lambda module: module.name))
