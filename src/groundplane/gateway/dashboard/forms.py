"""A form from a JSON Schema, and the arguments from what the form sends back.

A field for each property of an object: a choice for an enum or a boolean, boxes for several of an enum, a number, a
line, or JSON for what has parts. What is left empty is left out. The schema itself judges the arguments afterwards, as
for every other way in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from groundplane.core.errors import GroundplaneError, InvalidArgument
from groundplane.gateway import strict_json
from groundplane.gateway.dashboard.shown import text
from groundplane.gateway.problems import HTTPProblem

PREFIX = "arg."
WHOLE = "arguments"
_LONG_FROM = 200
_INPUTS = {"email": "email", "uri": "url", "date": "date"}

Sent = Mapping[str, Sequence[str]]


def fields(schema: Mapping[str, Any], sent: Sent | None = None) -> list[dict[str, Any]]:
    """What the template draws, required ones first; filled with what was `sent`, else with defaults."""
    required = set(schema.get("required", []))
    made = [
        _field(name, described if isinstance(described, dict) else {}, name in required, sent)
        for name, described in schema.get("properties", {}).items()
    ]
    return sorted(made, key=lambda one: not one["required"])


def arguments(schema: Mapping[str, Any], sent: Sent) -> dict[str, Any]:
    """What the fields say. Raises 422 for JSON that is none; a number that is none is left to the schema."""
    properties = schema.get("properties", {})
    found: dict[str, Any] = {}
    for key, values in sent.items():
        name = key.removeprefix(PREFIX)
        if key == name or name not in properties or not any(values):
            continue
        described = properties[name] if isinstance(properties[name], dict) else {}
        if _kind(described) == "many":
            found[name] = [_value(name, described["items"], typed) for typed in values]
        else:
            found[name] = _value(name, described, values[-1])
    return found


def whole(typed: str) -> dict[str, Any]:
    """All arguments as one JSON object."""
    value = _parsed(WHOLE, typed)
    if not isinstance(value, dict):
        raise HTTPProblem(422, f"{WHOLE}: {typed[:100]!r} is not a JSON object", details={"field": WHOLE})
    return value


def problems(error: GroundplaneError | HTTPProblem) -> dict[str, str]:
    """Messages by field; what is no field's comes under the empty name."""
    listed = error.details.get("problems") or [{"field": error.details.get("field", ""), "message": error.message}]
    return {_property(str(one["field"])): one["message"] for one in listed}


def _property(field: str) -> str:
    """`arguments.tags[2].name` is told at the field `tags`."""
    inside = field.removeprefix("arguments").removeprefix("content")
    return inside.strip(".").partition(".")[0].partition("[")[0]


def _field(name: str, described: Mapping[str, Any], required: bool, sent: Sent | None) -> dict[str, Any]:
    kind, default = _kind(described), described.get("default")
    if sent is not None:
        values = list(sent.get(PREFIX + name, []))
    elif kind == "many":
        values = [_typed(described["items"], one) for one in default or []]
    else:
        values = [_typed(described, default)]
    return {
        "name": name,
        "title": text(described.get("title") or name, 200),
        "key": PREFIX + name,
        "kind": kind,
        "input": _INPUTS.get(str(described.get("format")), "text"),
        "options": _options(described["items"] if kind == "many" else described),
        "required": required,
        "hint": text(described.get("description", ""), 1000),
        "value": values[-1] if values else "",
        "values": values,
        "least": described.get("minimum"),
        "most": described.get("maximum"),
        "step": "1" if described.get("type") == "integer" else "any",
    }


def _options(described: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Values as the form sends them, with their words: of an enum, of titled constants, of a truth."""
    if "enum" in described:
        values = list(described["enum"])
        names = described.get("enumNames") or values
    elif titled := [one for one in described.get("oneOf", described.get("anyOf", ())) if "const" in one]:
        values = [one["const"] for one in titled]
        names = [one.get("title", one["const"]) for one in titled]
    else:
        values = names = [True, False] if described.get("type") == "boolean" else []
    shown = [text({True: "yes", False: "no"}.get(one, one) if isinstance(one, bool) else one, 200) for one in names]
    return [(_typed(described, value), words) for value, words in zip(values, shown, strict=False)]


def _kind(described: Mapping[str, Any]) -> str:
    kind = described.get("type")
    if kind == "array" and isinstance(described.get("items"), dict) and _options(described["items"]):
        return "many"
    if _options(described):
        return "choice"
    if kind in ("integer", "number"):
        return "number"
    if kind == "string":
        return "long" if described.get("maxLength", 0) > _LONG_FROM else "line"
    return "json"


def _typed(described: Mapping[str, Any], value: Any) -> str:
    """A value as a form holds it: text as it is where the property is text, else JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) and _is_text(described) else json.dumps(value, ensure_ascii=False)


def _is_text(described: Mapping[str, Any]) -> bool:
    if "enum" in described:
        return all(isinstance(one, str) for one in described["enum"])
    return described.get("type") == "string"


def _value(name: str, described: Mapping[str, Any], typed: str) -> Any:
    if _is_text(described):
        return typed.replace("\r\n", "\n")
    if _kind(described) == "number":
        try:
            return int(typed) if described.get("type") == "integer" else float(typed)
        except ValueError:
            return typed  # the schema says what is wrong with it
    return _parsed(name, typed)


def _parsed(name: str, typed: str) -> Any:
    try:
        return strict_json.parse(typed.encode())
    except InvalidArgument as error:
        message = f"{name}: {typed[:100]!r} {error.message.partition(' ')[2]}"
        raise HTTPProblem(422, message, details={"field": name}) from error
