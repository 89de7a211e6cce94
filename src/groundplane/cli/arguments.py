"""Arguments of a tool from the words of a command line: `name=text`, converted as the tool's schema says, or
`name:=JSON`, taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from groundplane.core.errors import InvalidArgument


class Given(NamedTuple):
    """What stood on the command line: values of `name:=JSON`, and texts of `name=text`, whose type is not known yet."""

    values: dict[str, Any]
    texts: dict[str, str]


def parse_arguments(words: tuple[str, ...]) -> Given:
    """The words by name. `invalid_argument` for what is neither form, for bad JSON, and for a name given twice."""
    given = Given({}, {})
    for word in words:
        name, equals, value = word.partition("=")
        is_json = name.endswith(":")
        name = name.removesuffix(":")
        if not equals or not name:
            raise InvalidArgument(f"arguments: {word!r} is neither name=text nor name:=JSON")
        if name in given.values or name in given.texts:
            raise InvalidArgument(f"{name}: is given twice, the second time as {value[:200]!r}")
        if not value.isascii() and not _is_unicode(value):
            raise InvalidArgument(f"{name}: {value[:200]!r} is not UTF-8; write it in UTF-8")
        if is_json:
            given.values[name] = _json(name, value)
        else:
            given.texts[name] = value
    return given


def typed(given: Given, schema: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name. A text stays a text where the schema takes one (or says nothing); else it is read as JSON:
    `10`, `true`, `[1, 2]`. One that is no JSON stays a text, so that the tool's own check names the field and the type.
    """
    properties = schema.get("properties", {})
    converted = {
        name: text if _takes_text(properties.get(name), schema, frozenset()) else _json_or_text(text)
        for name, text in given.texts.items()
    }
    return {**given.values, **converted}


def _takes_text(described: Any, root: Mapping[str, Any], seen: frozenset[str]) -> bool:
    """Whether a value of this JSON Schema may be a string. A reference that is not found here, or circles, may be."""
    if not isinstance(described, dict):
        return True
    reference = described.get("$ref")
    if isinstance(reference, str):
        target = root.get("$defs", {}).get(reference.removeprefix("#/$defs/"))
        return reference in seen or _takes_text(target, root, seen | {reference})
    for union in ("anyOf", "oneOf"):
        if union in described:
            return any(_takes_text(one, root, seen) for one in described[union])
    if "allOf" in described:
        return all(_takes_text(one, root, seen) for one in described["allOf"])
    if "enum" in described:
        return any(isinstance(one, str) for one in described["enum"])
    if "const" in described:
        return isinstance(described["const"], str)
    kinds = described.get("type", "string")
    return "string" in (kinds if isinstance(kinds, list) else [kinds])


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that are no text
        return False
    return True


def _json(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name}: {text[:200]!r} is no JSON: {error}; write {name}=… for a text") from error


def _json_or_text(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return text
