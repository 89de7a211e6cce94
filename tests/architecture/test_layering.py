"""Who may import whom: the rules finer than the folders that import-linter checks in `make lint`."""

from __future__ import annotations

import ast
import sys

import pytest

from architecture.modules import Import, Module, modules

FEATURES = {
    "bus", "kv", "queues", "jobs", "memory", "coordination", "learning",
    "streams", "vectors", "blobs", "models", "security",
}  # fmt: skip
SYSTEMS = {
    "mesh": {"queues", "jobs", "blobs"},
    "gateway": {"jobs", "mesh", "services", "queues", "blobs", "security"},
    "services": {"bus", "kv"},
}
SDK_OF_BACKEND = {
    "sqlite": {"apsw"},
    "postgres": {"psycopg", "psycopg_pool"},
    "amqp": {"pamqp"},
    "nats": {"cryptography"},
    "s3": {"obstore", "boto3", "botocore"},
    "kubernetes": {"lightkube", "httpx2"},  # lightkube's own HTTP client
}


def _area(target: str) -> str:
    """The folder under the package; the package itself and its version belong to nobody and are open to all."""
    parts = target.split(".")
    return parts[1] if parts[0] == "groundplane" and len(parts) > 1 and parts[1] != "_version" else ""


def _offences(chosen: list[Module], forbidden: object) -> list[str]:
    assert callable(forbidden)
    return [
        f"{module.name}:{one.line} imports {one.target}"
        for module in chosen
        for one in module.imports()
        if forbidden(module, one)
    ]


def _third_party(one: Import) -> str | None:
    top = one.target.split(".")[0]
    return None if top in sys.stdlib_module_names or top in ("groundplane", "__future__") else top


def test_core_imports_the_standard_library_and_msgspec_alone() -> None:
    chosen = [m for m in modules() if m.area == "core"]
    assert chosen
    assert not _offences(
        chosen,
        lambda m, i: _third_party(i) not in (None, "msgspec") or _area(i.target) not in ("", "core"),
    )


def test_a_backend_imports_core_and_its_own_sdk_alone() -> None:
    chosen = [m for m in modules() if m.area == "backends" and len(m.parts) > 2]
    assert chosen
    assert not _offences(
        chosen,
        lambda m, i: (
            _third_party(i) not in (None, "msgspec", *SDK_OF_BACKEND.get(m.parts[2], set()))
            or _area(i.target) not in ("", "core", "backends")
            or (_area(i.target) == "backends" and i.target.split(".")[2:3] not in ([m.parts[2]], []))
        ),
    )


def test_features_do_not_import_each_other() -> None:
    chosen = [m for m in modules() if m.area in FEATURES]
    allowed = {"", "core", "telemetry", "backends"}
    assert not _offences(chosen, lambda m, i: _area(i.target) not in allowed | {m.area} and "testing" not in i.target)


def test_systems_import_only_the_features_that_the_layout_grants_them() -> None:
    def forbidden(module: Module, one: Import) -> bool:
        area = _area(one.target)
        granted = SYSTEMS[module.area] | {"", "core", "telemetry", module.area}
        return area not in granted and not (module.is_driver and area == "backends")

    chosen = [m for m in modules() if m.area in SYSTEMS and not m.name.endswith("conformance")]
    assert not _offences(chosen, forbidden)


def test_only_drivers_import_backends() -> None:
    chosen = [m for m in modules() if not m.is_driver and m.area not in ("backends", "testing")]
    assert not _offences(chosen, lambda m, i: _area(i.target) == "backends")


def _facades() -> set[str]:
    """Modules that define what a user opens: a public class with an `open` of its own, outside ports and drivers."""
    return {
        module.name
        for module in modules()
        for node in module.public()
        if isinstance(node, ast.ClassDef)
        and module.parts[-1] != "port"
        and "drivers" not in module.parts
        and any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name == "open" for n in node.body)
    }


def test_a_driver_imports_its_own_feature_without_the_facade_backends_and_core_alone() -> None:
    facades = _facades()

    def forbidden(module: Module, one: Import) -> bool:
        if _area(one.target) in ("", "core", "backends"):
            return False
        feature = module.name.split(".drivers.")[0]
        own = one.target.startswith(feature + ".") and ".conformance" not in one.target
        return not own or one.target in facades

    assert not _offences([m for m in modules() if m.is_driver], forbidden)


def test_nobody_imports_a_driver_by_name_but_drivers_of_the_same_feature() -> None:
    def forbidden(module: Module, one: Import) -> bool:
        if ".drivers." not in one.target:
            return False
        return not ("drivers" in module.parts and one.target.split(".drivers")[0] == module.name.split(".drivers")[0])

    assert not _offences(list(modules()), forbidden)


def test_conformance_suites_do_not_import_drivers_or_backends() -> None:
    chosen = [m for m in modules() if "conformance" in m.parts or m.name.endswith("_conformance")]
    assert not _offences(chosen, lambda m, i: ".drivers" in i.target or _area(i.target) == "backends")


def test_nothing_but_the_command_line_imports_testing() -> None:
    allowed = ("cli", "testing")

    def forbidden(module: Module, one: Import) -> bool:
        return (
            _area(one.target) == "testing"
            and module.area not in allowed
            and not ("conformance" in module.name and one.target.startswith("groundplane.testing.checkers"))
        )

    assert not _offences(list(modules()), forbidden)


def test_testing_imports_no_feature_outside_the_pytest_plugin() -> None:
    chosen = [m for m in modules() if m.area == "testing" and not m.name.startswith("groundplane.testing.plugin")]
    assert not _offences(chosen, lambda m, i: _area(i.target) not in ("", "core", "backends", "testing"))


def test_pytest_is_imported_by_conformance_suites_and_testing_alone() -> None:
    chosen = [m for m in modules() if "conformance" not in m.name and m.area != "testing"]
    assert not _offences(chosen, lambda m, i: i.target.split(".")[0] in ("pytest", "_pytest"))


@pytest.mark.req("CORE-04.2")
def test_optional_sdks_are_imported_by_the_gateway_and_the_command_line_lazily() -> None:
    """Starlette, uvicorn, mcp and the rest of the gateway extra may be missing from the installation."""
    optional = {"starlette", "uvicorn", "mcp", "httpx2", "jsonschema", "yaml", "lightkube"}
    chosen = [m for m in modules() if m.area not in ("gateway", "testing")]
    assert not _offences(
        chosen,
        lambda m, i: i.target.split(".")[0] in optional and not i.lazy and not i.typing_only,
    )
