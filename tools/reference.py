"""Writes the reference pages that come from the code into docs/reference/generated/ (part of `make docs`).

Ports, values and public names are read from the source as syntax trees, with their docstrings and the strings under
attributes; error reasons and the command line are asked from the imported program.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import http_reference

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "groundplane"
TARGET = ROOT / "docs" / "reference" / "generated"
NOTE = "<!-- written by tools/reference.py from the source; do not edit -->\n"

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_page(path: Path, level: int) -> str:
    """The public definitions of a module under its docstring."""
    tree = parse(path)
    out = [f"{'#' * level} `{module_name(path)}`", "", prose(ast.get_docstring(tree)), ""]
    out += [definition(node, level + 1) for node in tree.body if is_public(node)]
    return "\n".join(out)


def is_public(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")


def definition(node: ast.AST, level: int, *, owner: str = "") -> str:
    if isinstance(node, ast.ClassDef):
        return class_section(node, level)
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    title = f"{owner}.{node.name}" if owner else node.name
    heading = f"{'#' * level} `{title}`"
    return "\n".join([heading, "", code(signature(node)), "", prose(ast.get_docstring(node)), ""])


def class_section(node: ast.ClassDef, level: int) -> str:
    bases = ", ".join([ast.unparse(b) for b in node.bases] + [ast.unparse(k) for k in node.keywords])
    out = [f"{'#' * level} `{node.name}`", "", code(f"class {node.name}({bases})" if bases else f"class {node.name}")]
    out += ["", prose(ast.get_docstring(node)), ""]
    rows = list(attributes(node))
    if rows:
        out += ["| attribute | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    for child in node.body:
        if is_public(child):
            out.append(definition(child, min(level + 1, 6), owner=node.name))
    return "\n".join(out)


def attributes(node: ast.ClassDef) -> Iterator[str]:
    """One table row for each annotated attribute or enumeration member; a string below it is its meaning."""
    for index, child in enumerate(node.body):
        following = node.body[index + 1] if index + 1 < len(node.body) else None
        meaning = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            meaning = str(following.value.value) if isinstance(following.value.value, str) else ""
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            name, kind = child.target.id, ast.unparse(child.annotation)
            default = ast.unparse(child.value) if child.value else ""
        elif isinstance(child, ast.Assign) and isinstance(child.targets[0], ast.Name):
            name, kind, default = child.targets[0].id, "", ast.unparse(child.value)
        else:
            continue
        if not name.startswith("_"):
            yield f"| `{name}` | {cell(kind)} | {cell(default)} | {' '.join(meaning.split())} |"


def cell(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    decorators = "".join(f"@{ast.unparse(d)}\n" for d in node.decorator_list)
    arguments = ast.unparse(node.args)
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{prefix} {node.name}({arguments}){returned}"
    if len(line) > 100:
        line = f"{prefix} {node.name}(\n    {arguments},\n){returned}"
    return decorators + line


def code(text: str) -> str:
    return f"```python\n{text}\n```"


def prose(text: str | None) -> str:
    """A docstring as Markdown: angle brackets outside code are not HTML, square brackets are not links."""
    parts = re.split(r"(``?[^`]*``?)", inspect.cleandoc(text or ""))
    return "".join(
        p if p.startswith("`") else p.replace("<", "&lt;").replace("[", "\\[").replace("]", "\\]") for p in parts
    )


def ports() -> str:
    paths = sorted(p for p in PACKAGE.rglob("port.py"))
    return "# Ports\n\n" + "\n\n".join(module_page(path, 2) for path in paths)


def core() -> str:
    chosen = ("envelope", "errors", "retry", "deadline", "durations", "lifecycle", "dead_letters", "ids")
    paths = [PACKAGE / "core" / f"{name}.py" for name in chosen]
    return "# Core values\n\n" + "\n\n".join(module_page(path, 2) for path in paths if path.exists())


def settings() -> str:
    paths = sorted(
        [*PACKAGE.glob("core/settings*.py"), *PACKAGE.glob("core/settings/*.py"), *PACKAGE.glob("settings*.py")]
    )
    return "# Settings\n\n" + "\n\n".join(module_page(path, 2) for path in paths)


def conformance() -> str:
    paths = sorted([*PACKAGE.rglob("conformance.py"), *PACKAGE.rglob("conformance/*.py")])
    out = ["# Conformance suites", "", "Subclass a suite, give it one fixture, and pytest runs it against your driver."]
    for path in paths:
        tree = parse(path)
        out += ["", f"## `{module_name(path)}`", "", prose(ast.get_docstring(tree)), ""]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                out.append(f"* {node.name.removeprefix('test_').replace('_', ' ')}")
    return "\n".join(out) + "\n"


def reasons() -> str:
    """The table of error reasons, as the program knows it."""
    from groundplane.core.reasons import REASONS

    out = ["# Error reasons", "", "Every `reason` that an error may carry.", ""]
    for name, row in sorted(REASONS.items()):
        retried = "may be retried" if row.retryable else "not retried"
        out += [f"## {name}", "", f"Code `{row.code}`, {retried}.", "", prose(row.meaning), "", prose(row.remedy), ""]
    return "\n".join(out)


def public() -> str:
    """Every name of `groundplane.__all__` with its documentation."""
    package = importlib.import_module("groundplane")
    out = ["# Public names", "", "What `from groundplane import …` offers.", ""]
    for name in sorted(getattr(package, "__all__", ())):
        value = getattr(package, name)
        source = inspect.getsourcefile(value) if inspect.isclass(value) or inspect.isfunction(value) else None
        if source is None:
            out += [f"## `{name}`", "", "A value." if name.startswith("__") else prose(inspect.getdoc(value)), ""]
            continue
        nodes = [n for n in parse(Path(source)).body if is_public(n) and getattr(n, "name", "") == value.__name__]
        out += [definition(node, 2) for node in nodes]
    return "\n".join(out)


def command_line() -> str:
    """The tree of commands, and the flags of the two that start without it."""
    from groundplane.cli.program import build

    out = [build().generate_docs(output_format="markdown")]
    for command in ("sidecar", "runtime"):
        run = subprocess.run(
            [sys.executable, "-m", "groundplane.cli", command, "--help"],
            capture_output=True, text=True, timeout=60, check=True, env=os.environ | {"COLUMNS": "100"},
        )  # fmt: skip
        out += [f"## Flags of `groundplane {command}`", "", f"```text\n{run.stdout.strip()}\n```", ""]
    return "\n".join(out)


def decisions() -> str:
    """The index of the decision records, which is committed: it is read in the repository too."""
    out = ["# Decisions", "", "One file for each decision that someone would otherwise re-open."]
    out[-1] += " How and why: [the first one](0001-record-decisions.md)."
    out += ["", "<!-- the list is written by tools/reference.py (make docs) -->", ""]
    for record in sorted((ROOT / "docs" / "adr").glob("[0-9]*.md")):
        title = record.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        out.append(f"* [{title}]({record.name})")
    return "\n".join(out) + "\n"


def http() -> str:
    """The HTTP interface; the document itself is written beside the page."""
    document = http_reference.served_document()
    (TARGET / "openapi.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return http_reference.page(document)


def metrics() -> str:
    """Every metric, as the collectors of each role tell it."""
    from groundplane.cli.metric_table import metric_rows
    from groundplane.telemetry.default_rules import default_rules

    out = ["# Metrics", "", "What `/metrics` of each role shows. A counter has `_total` added to its name here, a"]
    out += ["histogram `_bucket`, `_sum` and `_count`. Seconds and bytes everywhere; at most 1,000 series of a metric."]
    out += ["Handlers add `groundplane_custom_*`.", "", "| metric | kind | labels | roles | meaning |"]
    out += ["|---|---|---|---|---|"]
    for row in metric_rows():
        labels, roles = ", ".join(f"`{one}`" for one in row.labels), ", ".join(row.roles)
        out.append(f"| `{row.name}` | {row.kind} | {labels} | {roles} | {prose(row.help)} |")
    out += ["", "## Alerts", "", "| alert | severity | for | fires when |", "|---|---|---|---|"]
    for rule in default_rules():
        link = f"[{rule.name}](../../howto/runbooks/{rule.name}.md)"
        out.append(f"| {link} | {rule.severity} | {rule.for_s:g} s | {cell(rule.promql())} |")
    return "\n".join(out) + "\n"


PAGES = {
    "metrics": metrics,
    "http": http,
    "public": public,
    "ports": ports,
    "core": core,
    "settings": settings,
    "reasons": reasons,
    "conformance": conformance,
    "cli": command_line,
}


def main() -> int:
    os.environ["NO_COLOR"] = "1"
    TARGET.mkdir(parents=True, exist_ok=True)
    for stale in TARGET.glob("*.md"):
        stale.unlink()
    for name, page in PAGES.items():
        (TARGET / f"{name}.md").write_text(f"{page()}\n\n{NOTE}", encoding="utf-8")
    (ROOT / "docs" / "adr" / "index.md").write_text(decisions(), encoding="utf-8")
    print(f"wrote {len(PAGES)} pages into {TARGET.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    raise SystemExit(main())
