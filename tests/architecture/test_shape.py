"""What every module of the product looks like: documented, named by its thought, ports small."""

from __future__ import annotations

import ast
import re
import sys

import pytest

from architecture.modules import ROOT, Module, modules

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "impl", "misc"}
PORT_METHODS_MAX = 8
FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 600


def _methods(port: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        n for n in port.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and not n.name.startswith("_")
    ]


def _is_property(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator) == "property" for decorator in method.decorator_list)


def _port_modules() -> list[Module]:
    return [m for m in modules() if m.parts[-1] == "port"]


def test_every_port_module_declares_a_protocol() -> None:
    assert _port_modules()
    assert [m.name for m in _port_modules() if not m.ports()] == []


def test_a_port_has_at_most_eight_methods() -> None:
    sizes = {
        f"{m.name}.{port.name}": sum(not _is_property(method) for method in _methods(port))
        for m in modules()
        for port in m.ports()
    }
    assert {name: size for name, size in sizes.items() if size > PORT_METHODS_MAX} == {}


def test_everything_public_in_a_port_says_what_it_promises() -> None:
    missing = []
    for module in _port_modules():
        for node in module.public():
            if not ast.get_docstring(node):
                missing.append(f"{module.name}.{node.name}")
            if node in module.ports():
                assert isinstance(node, ast.ClassDef)
                missing += [
                    f"{module.name}.{node.name}.{method.name}"
                    for method in _methods(node)
                    if not ast.get_docstring(method)
                ]
    assert missing == []


def test_every_module_says_what_it_is_for() -> None:
    generated = {"groundplane._version"}
    assert [m.name for m in modules() if not ast.get_docstring(m.tree) and m.name not in generated] == []


def test_no_module_is_named_for_nothing_in_particular() -> None:
    assert [m.name for m in modules() if set(m.parts) & FORBIDDEN_NAMES] == []


def test_drivers_end_with_the_statement_that_lets_the_type_checker_compare_them_with_their_port() -> None:
    """`_: QueueDriver = RabbitQueue` or a function `_conforms` of that meaning, as the last statement of a module."""
    closing: dict[str, str] = {}
    for module in modules():
        if module.is_driver and isinstance(module.tree.body[-1], ast.AnnAssign | ast.FunctionDef):
            feature = module.name.split(".drivers")[0]
            closing[feature] = closing.get(feature, "") + ast.unparse(module.tree.body[-1])
    with_drivers = {m.name.split(".drivers")[0] for m in modules() if m.is_driver}
    unchecked = [
        f"{module.name}.{port.name}"
        for module in _port_modules()
        for port in module.ports()[-1:]  # the port itself; what its methods return comes before it
        if module.name.removesuffix(".port") in with_drivers
        and not re.search(rf"\b{port.name}\b", closing.get(module.name.removesuffix(".port"), ""))
    ]
    assert unchecked == []


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{m.name}.{node.name} has {_body_lines(node)} lines"
        for m in modules()
        for node in ast.walk(m.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _body_lines(node) > FUNCTION_LINES_MAX
    ]
    assert long == []


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def test_modules_can_be_read_in_one_sitting() -> None:
    long = {m.name: len(m.path.read_text(encoding="utf-8").splitlines()) for m in modules()}
    allowed = {"groundplane.mesh.runtime"}  # one file by design: it is mounted into foreign images
    assert {name: n for name, n in long.items() if n > MODULE_LINES_MAX and name not in allowed} == {}


def test_no_note_about_unfinished_work_is_left_in_the_source() -> None:
    found = [
        f"{m.name}:{number}"
        for m in modules()
        for number, line in enumerate(m.path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line)
    ]
    assert found == []


def test_no_error_is_swallowed_whole() -> None:
    """`except …: pass` hides why; `contextlib.suppress` with a narrow class says it."""
    found = [
        f"{m.name}:{node.lineno}"
        for m in modules()
        for node in ast.walk(m.tree)
        if isinstance(node, ast.ExceptHandler)
        and [type(statement) for statement in node.body] == [ast.Pass]
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
    ]
    assert found == []


def test_nothing_at_rest_can_run_code() -> None:
    """No pickle, no eval, no exec, no shell: state at rest is inert."""
    forbidden = {"pickle", "marshal", "shelve", "dill"}
    found = []
    for module in modules():
        found += [f"{module.name} imports {i.target}" for i in module.imports() if i.target.split(".")[0] in forbidden]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.append(f"{module.name}:{node.lineno} calls {node.func.id}")
            if isinstance(node, ast.keyword) and node.arg == "shell" and ast.unparse(node.value) == "True":
                found.append(f"{module.name}:{node.lineno} starts a shell")
    assert found == []


RUNTIME = ROOT / "src/groundplane/mesh/runtime.py"


@pytest.mark.req("MESH-24")
def test_the_runtime_is_one_file_in_the_grammar_of_python_3_9() -> None:
    ast.parse(RUNTIME.read_text(encoding="utf-8"), feature_version=(3, 9))


@pytest.mark.req("MESH-24")
def test_the_runtime_imports_the_standard_library_and_msgspec_only_where_it_is_there() -> None:
    (runtime,) = (m for m in modules() if m.name == "groundplane.mesh.runtime")
    tops = {(i.target.split(".")[0], i.lazy) for i in runtime.imports()}
    foreign = {top for top, _ in tops if top not in sys.stdlib_module_names and top != "__future__"}
    assert foreign <= {"msgspec"}
    guarded = [
        node
        for node in ast.walk(runtime.tree)
        if isinstance(node, ast.Try)
        and "msgspec" in ast.unparse(node.body)  # type: ignore[arg-type]
        and any("ImportError" in ast.unparse(h.type or ast.Constant("")) for h in node.handlers)
    ]
    assert guarded or not foreign
