"""A guide to a library of Python code: `ingest` reads every package of a folder, `ask` answers with file and line.

groundplane dev app:app
groundplane call ingest path=/usr/lib/python3.11
groundplane call ask question="parse a TOML file"
"""

import ast
import os
from pathlib import Path
from typing import Any

import catalogue

from groundplane import App, Context, FanOut

app = App("library-guide")

SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "node_modules"}


@app.actor
def walk(path: str, skip: list[str] | None = None) -> FanOut:
    """One envelope for each package or module at the top of the folder, without the files in `skip`."""
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise ValueError(f"path: {path!r} is not a folder on this machine")
    packages = [{"root": str(root), "package": name, "files": files} for name, files in modules_of(root, skip).items()]
    if not packages:
        raise ValueError(f"path: {path!r} holds no Python files")
    return FanOut(packages)


@app.actor(concurrency=2, timeout=60)
def parse(root: str, package: str, files: list[str], ctx: Context) -> dict[str, Any]:
    """The definitions of one package: name, signature, first paragraph of the docstring, file and line."""
    symbols = []
    for number, file in enumerate(files):
        ctx.progress(100 * number / len(files), f"{package}: {file} in worker {os.getpid()}")
        symbols += read_module(Path(root), file)
    return {"root": root, "package": package, "files": len(files), "symbols": symbols}


@app.actor(join=True, join_timeout=240, timeout=60)
def index(packages: list[dict[str, Any]], ctx: Context) -> dict[str, Any]:
    """The fan-in: all packages become one full-text index, in one transaction."""
    missing = list(ctx.join.missing) if ctx.join else []
    symbols = [symbol for package in packages for symbol in package["symbols"]]
    catalogue.replace(packages[0]["root"], symbols)
    return {
        "packages": len(packages),
        "files": sum(package["files"] for package in packages),
        "symbols": len(symbols),
        "missing": missing,
    }


@app.actor
def search(question: str, limit: int = 5) -> list[dict[str, Any]]:
    """The best places in the index, best first."""
    return catalogue.search(question, limit)


app.tool("ingest", route=[walk, parse, index], description="Reads a folder of Python code into the index.", timeout=300)
app.tool("ask", route=[search], description="Answers a question with places in the code.", timeout=30)


def modules_of(root: Path, skip: list[str] | None = None) -> dict[str, list[str]]:
    """The Python files below `root`, by the top-level package or module that they belong to."""
    packages: dict[str, list[str]] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))
        for name in sorted(names):
            if name.endswith(".py"):
                file = os.path.relpath(os.path.join(folder, name), root)
                if file not in (skip or []):
                    packages.setdefault(file.split(os.sep)[0].removesuffix(".py"), []).append(file)
    return packages


def read_module(root: Path, file: str) -> list[dict[str, Any]]:
    """What one file defines. A syntax error is the caller's to handle."""
    source = (root / file).read_bytes()
    tree = ast.parse(source, filename=file)
    module = file.removesuffix(".py").replace(os.sep, ".").removesuffix(".__init__")
    found = [_symbol(file, 1, "module", module, "", tree)]
    _collect(tree, module, file, found)
    return found


def _collect(node: ast.AST, prefix: str, file: str, found: list[dict[str, Any]]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            bases = ", ".join(ast.unparse(base) for base in child.bases)
            found.append(_symbol(file, child.lineno, "class", f"{prefix}.{child.name}", f"({bases})", child))
            _collect(child, f"{prefix}.{child.name}", file, found)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}.{child.name}"
            found.append(_symbol(file, child.lineno, "function", name, f"({ast.unparse(child.args)})", child))


def _symbol(file: str, line: int, kind: str, name: str, signature: str, node: Any) -> dict[str, Any]:
    text = (ast.get_docstring(node) or "").split("\n\n")[0]
    return {"file": file, "line": line, "kind": kind, "name": name, "signature": signature, "text": text[:600]}
