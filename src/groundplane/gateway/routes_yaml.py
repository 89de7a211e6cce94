"""`routes.yaml`: tools declared without Python, strictly.

    defaults: {progress: true, timeout: 60}
    routes:   {classify: [reader, classifier]}
    tools:
      - name: classify-mail
        description: Says what a mail is about.
        parameters:
          text: {type: string, required: true}
          mode: {type: string, options: [fast, deep], default: fast}
        route: classify            # a template, or a list of actors
        timeout: 30s

A folder of such files is merged: templates are shared, defaults hold in their own file. Every problem of every file is
reported at once as `InvalidArgument`, each with file, line and field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import msgspec
from jsonschema import Draft202012Validator

from groundplane.core.durations import parse_duration
from groundplane.core.errors import InvalidArgument
from groundplane.core.names import check_name, did_you_mean
from groundplane.gateway.located_yaml import Located, Problem, Unreadable, fail, read_yaml, shown
from groundplane.mesh.spec import HOPS_MAX, TOOL_TIMEOUT_S, ToolSpec

TYPES = ("string", "number", "integer", "boolean", "array", "object")
_FILE = ("defaults", "routes", "tools")
_DEFAULTS = ("progress", "timeout", "on_disconnect")
_TOOL = ("name", "description", "parameters", "route", "progress", "timeout", "metadata", "on_disconnect")
_PARAMETER = ("type", "description", "required", "default", "options", "items", "properties")


class _Defaults(msgspec.Struct, frozen=True, kw_only=True):
    progress: bool = True
    timeout_s: float = TOOL_TIMEOUT_S
    on_disconnect: Literal["cancel", "detach"] = "detach"


def load_tools(path: Path) -> list[ToolSpec]:
    """The tools of a file, or of all `*.yaml` and `*.yml` of a folder in order of name. Raises `InvalidArgument`."""
    reader = _Reader()
    files = [path]
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.suffix in (".yaml", ".yml") and one.is_file())
        if not files:
            reader.problems.append(Problem(file=str(path), line=1, field="", message="has no *.yaml files"))
    documents = [document for one in files if (document := reader.document(one)) is not None]
    for document in documents:
        reader.templates(document)
    tools = [tool for document in documents for tool in reader.tools(document)]
    if not tools and not reader.problems:
        reader.problems.append(Problem(file=str(path), line=1, field="tools", message="is missing; list tools"))
    fail(reader.problems)
    return tools


class _Reader:
    """Collects problems instead of stopping at the first, so that one run shows all of them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._templates: dict[str, tuple[Located, list[str]]] = {}
        self._names: dict[str, Located] = {}

    def document(self, path: Path) -> dict[str, Located] | None:
        try:
            read = read_yaml(path)
        except Unreadable as error:
            self.problems.append(error.problem)
            return None
        return self._mapping(read, _FILE)

    def templates(self, document: dict[str, Located]) -> None:
        if "routes" not in document:
            return
        for name, route in (self._mapping(document["routes"]) or {}).items():
            self._name(route, name)
            if name in self._templates:
                first = self._templates[name][0]
                self._add(route, f"the template {name!r} is there already, at {first.file}:{first.line}")
            elif (actors := self._actors(route)) is not None:
                self._templates[name] = (route, actors)

    def tools(self, document: dict[str, Located]) -> list[ToolSpec]:
        defaults = self._defaults(document.get("defaults"))
        if "tools" not in document:
            return []
        listed = document["tools"]
        if not isinstance(listed.value, list):
            self._add(listed, f"{listed.shown()} is not a list of tools")
            return []
        if not listed.value:
            self._add(listed, "is empty; list at least one tool")
        return [tool for one in listed.value if (tool := self._tool(one, defaults)) is not None]

    def _defaults(self, located: Located | None) -> _Defaults:
        values = self._mapping(located, _DEFAULTS) if located is not None else None
        return self._settings(values or {}, _Defaults())

    def _settings(self, values: dict[str, Located], above: _Defaults) -> _Defaults:
        """`progress`, `timeout` and `on_disconnect` of a tool or of the file, over what holds above."""
        progress, timeout_s, on_disconnect = above.progress, above.timeout_s, above.on_disconnect
        if (found := values.get("progress")) is not None:
            if isinstance(found.value, bool):
                progress = found.value
            else:
                self._add(found, f"{found.shown()} is not true or false")
        if (found := values.get("timeout")) is not None:
            timeout_s = self._timeout(found) or timeout_s
        if (found := values.get("on_disconnect")) is not None:
            if found.value in ("cancel", "detach"):
                on_disconnect = cast('Literal["cancel", "detach"]', found.value)
            else:
                near = did_you_mean(str(found.value), ("cancel", "detach"))
                self._add(found, f"{found.shown()} is not 'cancel' or 'detach'{near}")
        return _Defaults(progress=progress, timeout_s=timeout_s, on_disconnect=on_disconnect)

    def _timeout(self, found: Located) -> float | None:
        if isinstance(found.value, bool) or not isinstance(found.value, int | float | str):
            self._add(found, f"{found.shown()} is not a duration; write seconds (30) or '30s', '5m'")
            return None
        try:
            return parse_duration("timeout", found.value)
        except InvalidArgument as error:
            self._add(found, error.message.removeprefix("timeout: "))
            return None

    def _tool(self, located: Located, defaults: _Defaults) -> ToolSpec | None:
        before = len(self.problems)
        values = self._mapping(located, _TOOL)
        if values is None:
            return None
        name = self._tool_name(located, values)
        settings = self._settings(values, defaults)
        route = self._route(located, values)
        description = self._text(values.get("description"))
        schema = self._schema(values["parameters"]) if "parameters" in values else _object({}, [])
        metadata: dict[str, Any] = {}
        if (found := values.get("metadata")) is not None and self._mapping(found) is not None:
            metadata = found.plain()
        if len(self.problems) > before or name is None or route is None or schema is None:
            return None
        return ToolSpec(
            name=name,
            route=route,
            description=description,
            input_schema=schema,
            timeout_s=settings.timeout_s,
            progress=settings.progress,
            on_disconnect=settings.on_disconnect,
            metadata=metadata,
            origin=f"{located.file}:{located.line}",
        )

    def _tool_name(self, located: Located, values: dict[str, Located]) -> str | None:
        if (found := values.get("name")) is None:
            self._add(located, "has no name; give the tool one")
            return None
        if self._name(found, found.value) is None:
            return None
        if (first := self._names.get(found.value)) is not None:
            self._add(found, f"{found.value!r} is there already, at {first.file}:{first.line}; names are unique")
        self._names.setdefault(found.value, found)
        return str(found.value)

    def _route(self, located: Located, values: dict[str, Located]) -> list[str] | None:
        if (found := values.get("route")) is None:
            self._add(located, "has no route; name a template or list actors")
            return None
        if not isinstance(found.value, str):
            return self._actors(found)
        if found.value in self._templates:
            return list(self._templates[found.value][1])
        known = ", ".join(sorted(self._templates)) or "there are none"
        near = did_you_mean(found.value, self._templates) or f" ({known})"
        self._add(found, f"{found.value!r} is not a template of 'routes'{near}")
        return None

    def _actors(self, found: Located) -> list[str] | None:
        if not isinstance(found.value, list):
            self._add(found, f"{found.shown()} is not a list of actors")
            return None
        if not found.value:
            self._add(found, "is empty; list at least one actor")
            return None
        if len(found.value) > HOPS_MAX:
            self._add(found, f"has {len(found.value)} actors, more than {HOPS_MAX}")
            return None
        named = [self._name(actor, actor.value) for actor in found.value]
        return None if None in named else [str(name) for name in named]

    def _text(self, found: Located | None) -> str:
        if found is None or isinstance(found.value, str):
            return found.value if found is not None else ""
        self._add(found, f"{found.shown()} is not text")
        return ""

    def _schema(self, located: Located) -> dict[str, Any] | None:
        """The JSON Schema of a mapping of parameters."""
        parameters = self._mapping(located)
        if parameters is None:
            return None
        properties: dict[str, Any] = {}
        required: list[str] = []
        for name, parameter in parameters.items():
            described = self._parameter(parameter)
            if described is None:
                continue
            properties[name], needed = described
            if needed:
                required.append(name)
        return _object(properties, required)

    def _parameter(self, located: Located) -> tuple[dict[str, Any], bool] | None:
        before = len(self.problems)
        values = self._mapping(located, _PARAMETER)
        if values is None:
            return None
        schema = self._typed(located, values)
        if schema is None:
            return None
        if "description" in values:
            schema["description"] = self._text(values["description"])
        if "options" in values:
            self._options(values["options"], schema)
        if "default" in values:
            self._default(values["default"], schema)
        required = False
        if (found := values.get("required")) is not None:
            required = found.value is True
            if not isinstance(found.value, bool):
                self._add(found, f"{found.shown()} is not true or false")
            elif required and "default" in values:
                self._add(found, "true contradicts the default; remove one of them")
        return None if len(self.problems) > before else (schema, required)

    def _typed(self, located: Located, values: dict[str, Located]) -> dict[str, Any] | None:
        if (found := values.get("type")) is None:
            self._add(located, f"has no type; use one of {', '.join(TYPES)}")
            return None
        if found.value not in TYPES:
            near = did_you_mean(str(found.value), TYPES) or f"; use one of {', '.join(TYPES)}"
            self._add(found, f"{found.shown()} is not a type{near}")
            return None
        schema: dict[str, Any] = {"type": found.value}
        for key, owner in (("items", "array"), ("properties", "object")):
            if key in values and found.value != owner:
                self._add(values[key], f"goes with the type {owner!r} alone, not with {found.value!r}")
        if found.value == "array" and "items" in values:
            described = self._parameter(values["items"])
            schema["items"] = described[0] if described else {}
        if found.value == "object" and "properties" in values:
            schema.update(self._schema(values["properties"]) or {})
        return schema

    def _options(self, found: Located, schema: dict[str, Any]) -> None:
        if not isinstance(found.value, list) or not found.value:
            self._add(found, f"{found.shown()} is not a list of at least one value")
            return
        kind = schema["type"]
        for option in found.value:
            if not Draft202012Validator({"type": kind}).is_valid(option.plain()):
                self._add(option, f"{option.shown()} is not of the type {kind!r}")
        options = [option.plain() for option in found.value]
        if any(option in options[:n] for n, option in enumerate(options)):
            self._add(found, f"{found.shown()} has a value twice")
        schema["enum"] = options

    def _default(self, found: Located, schema: dict[str, Any]) -> None:
        value = found.plain()
        if "enum" in schema and value not in schema["enum"]:
            near = did_you_mean(str(value), map(str, schema["enum"]))
            self._add(found, f"{shown(value)} is not among the options {schema['enum']!r}{near}")
        elif (error := next(Draft202012Validator(schema).iter_errors(value), None)) is not None:
            self._add(found, f"{shown(value)} does not fit the type {schema['type']!r}: {error.message}")
        schema["default"] = value

    def _mapping(self, located: Located, known: tuple[str, ...] | None = None) -> dict[str, Located] | None:
        if not isinstance(located.value, dict):
            self._add(located, f"{located.shown()} is not a mapping")
            return None
        for key, item in located.value.items():
            if known is not None and key not in known:
                near = did_you_mean(key, known) or f"; use {', '.join(known)}"
                self._add(item, f"is an unknown key{near}")
        return located.value

    def _name(self, located: Located, value: Any) -> str | None:
        try:
            return check_name("name", value.plain() if isinstance(value, Located) else value)
        except InvalidArgument as error:
            self._add(located, error.message.removeprefix("name: "))
            return None

    def _add(self, located: Located, message: str) -> None:
        self.problems.append(located.problem(message))


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = required
    return schema
