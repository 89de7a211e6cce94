"""Arguments of tools: the JSON Schema they are described by, and the check that names the field and shows the value.

A schema is compiled once per tool. Defaults are filled in before the check, at every level where an object is given.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend

from groundplane.core.errors import InvalidArgument
from groundplane.core.names import did_you_mean
from groundplane.core.secrets import MASK, hides

DEPTH_MAX = 100
_SHOWN_MAX = 200
_KINDS = {
    "string": "text",
    "number": "a number",
    "integer": "an integer",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


# 1.0 is an integer to JSON Schema, and not to a handler that asks for one: it is refused before a job exists
_Validator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


class ArgumentCheck:
    """A compiled schema of an object: the arguments of a tool, or (`root="body"`) the body of a request.

    Stateless after construction; may be used concurrently.
    """

    def __init__(
        self, owner: str, schema: Mapping[str, Any], *, root: str = "arguments", named: str = "input_schema"
    ) -> None:
        try:
            Draft202012Validator.check_schema(dict(schema))
        except SchemaError as error:
            raise InvalidArgument(f"{named}: of {owner} is no JSON Schema: {error.message}") from error
        if schema.get("type") != "object":
            raise InvalidArgument(f"{named}: type of {owner} is {schema.get('type')!r}; it must be 'object'")
        self._owner = owner
        self._root = root
        self._schema = dict(schema)
        self._validator = _Validator(self._schema)
        self._plain = Draft202012Validator(self._schema)

    def __call__(self, arguments: Any) -> dict[str, Any]:
        """`arguments` with defaults filled in; a fresh dict. Raises `InvalidArgument` that names the first bad field
        and lists all in `details["problems"]`.
        """
        if arguments is None and self._root != "body":
            arguments = {}
        if not isinstance(arguments, dict):
            raise _invalid([(self._root, f"{_shown(arguments)} is not an object")])
        refuse_uncarryable(arguments, self._root)
        filled = _with_defaults(arguments, self._schema)
        self._refuse(self._validator.iter_errors(filled))
        return filled

    def conforms(self, value: dict[str, Any]) -> None:
        """Raise as a call does where `value` is not what the schema says, in JSON Schema's own sense (1.0 is an
        integer) and without its defaults.
        """
        self._refuse(self._plain.iter_errors(value))

    def _refuse(self, errors: Iterable[ValidationError]) -> None:
        problems = [found for error in errors for found in self._problems(error)]
        if problems:
            raise _invalid(sorted(problems, key=lambda one: (one[1].startswith("is missing"), one[0])))

    def _problems(self, error: ValidationError) -> Iterable[tuple[str, str]]:
        """Field and message of one violation; an object with several unknown or missing members yields each."""
        where = self._root + _path(error)
        field = next((part for part in reversed(error.absolute_path) if isinstance(part, str)), "")
        schema: Any = error.schema
        rule: Any = error.validator_value
        if error.validator == "required" and isinstance(error.instance, dict):
            for name in rule:
                if name not in error.instance and f"{name!r} is a required" in error.message:
                    yield f"{where}.{name}", f"is missing; {self._owner} needs {_kind(schema, name)}"
        elif error.validator == "additionalProperties" and isinstance(error.instance, dict):
            known = list(schema.get("properties", {}))
            for name in error.instance:
                if name not in known:
                    near = did_you_mean(str(name), known) or f"; it takes {', '.join(known) or 'nothing'}"
                    yield f"{where}.{name}", f"{_shown(error.instance[name], name)} is unknown to {self._owner}{near}"
        elif error.validator == "type":
            yield where, f"{_shown(error.instance, field)} is not {_kinds(rule)}"
        elif error.validator == "enum":
            options = [str(option) for option in rule]
            near = did_you_mean(str(error.instance), options)
            yield where, f"{_shown(error.instance, field)} is not one of {', '.join(map(repr, rule))}{near}"
        elif hides(field, error.instance):  # the message has the value in it
            yield where, f"{MASK} does not fit {error.validator} {_cut(repr(rule))}"
        else:
            yield where, _cut(error.message)


def refuse_uncarryable(value: Any, path: str = "arguments") -> None:
    """Raise `InvalidArgument` for what no JSON or MessagePack message carries: NaN, infinity, lone surrogates, integers
    beyond 64 bits, nesting beyond `DEPTH_MAX`.
    """
    pending: list[tuple[Any, str, int]] = [(value, path, 0)]
    while pending:
        item, where, depth = pending.pop()
        if depth > DEPTH_MAX:
            raise _invalid([(where[:100] + "…", f"is nested deeper than {DEPTH_MAX} levels")])
        if isinstance(item, dict):
            for key, inner in item.items():
                _check_text(str(key), where)
                pending.append((inner, f"{where}.{key}", depth + 1))
        elif isinstance(item, list):
            pending.extend((inner, f"{where}[{n}]", depth + 1) for n, inner in enumerate(item))
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise _invalid([(where, f"{item!r} is no JSON number")])
        elif isinstance(item, str):
            _check_text(item, where)
        elif isinstance(item, int) and not -(2**63) <= item < 2**64:
            raise _invalid([(where, f"{_shown(item)} has more than 64 bits; send it as text")])


def _check_text(text: str, where: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _invalid([(where, f"{_shown(text)} has a lone surrogate and is no Unicode text")]) from error


def _with_defaults(value: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    filled = dict(value)
    properties = schema.get("properties", {})
    for name, described in properties.items():
        if not isinstance(described, dict):
            continue
        if name not in filled:
            if "default" in described:
                filled[name] = copy.deepcopy(described["default"])
        elif isinstance(filled[name], dict) and "properties" in described:
            filled[name] = _with_defaults(filled[name], described)
    return filled


def _invalid(problems: list[tuple[str, str]]) -> InvalidArgument:
    field, message = problems[0]
    listed = [{"field": one, "message": what} for one, what in problems]
    return InvalidArgument(f"{field}: {message}", details={"field": field, "problems": listed})


def _path(error: ValidationError) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    return "".join(parts)


def _kind(schema: Mapping[str, Any], name: str) -> str:
    described = schema.get("properties", {}).get(name, {})
    return _kinds(described.get("type")) if isinstance(described, dict) and "type" in described else "it"


def _kinds(kinds: Any) -> str:
    listed = kinds if isinstance(kinds, list) else [kinds]
    return " or ".join(_KINDS.get(kind, repr(kind)) for kind in listed)


def _shown(value: Any, field: str = "") -> str:
    return MASK if hides(field, value) else _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "…"
