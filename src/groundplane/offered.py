"""What tools, prompts and resources are declared with, checked: every mistake names the field and shows the value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from groundplane import signatures
from groundplane.core.durations import parse_duration
from groundplane.core.errors import InvalidArgument
from groundplane.mesh.spec import Completion, PromptArgument, PromptSpec, ResourceSpec, TaskPolicy, ToolSpec

OnDisconnect = Literal["cancel", "detach"]

COMPLETION_TAKES = ("value", "arguments")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s]+")
_VARIABLE = re.compile(r"\{\+?([A-Za-z_][A-Za-z0-9_]*)\}")
_TYPES = {"string", None}


def check_texts(field: str, given: Any, owner: str) -> list[str]:
    """`given` where it is a list of texts."""
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        raise InvalidArgument(f"{field}: {given!r} of {owner} is not a list of texts")
    return list(given)


def tool_spec(
    name: str,
    route: list[str],
    first: Any,
    mode: str,
    *,
    description: Any,
    timeout: Any,
    task_after: Any,
    input_schema: Any,
    output_schema: Any,
    metadata: Any,
    annotations: Any,
    updates: Any,
    **options: Any,
) -> ToolSpec:
    """The spec of a tool whose route has been resolved. `first` is the handler of its first actor (None: it is not at
    hand), which takes `mode`.
    """
    owner = f"tool {name!r}"
    for option, choices in (("on_disconnect", OnDisconnect), ("task", TaskPolicy)):
        if options[option] not in get_args(choices):
            wanted = " or ".join(map(repr, get_args(choices)))
            raise InvalidArgument(f"{option}: {options[option]!r} of {owner} is not {wanted}")
    given = {**options, "description": description}
    for option, kind in (("description", str), ("title", str), ("progress", bool), ("content", bool)):
        if not isinstance(given[option], kind):
            raise InvalidArgument(f"{option}: {given[option]!r} of {owner} is not a {kind.__name__}")
    if input_schema is None:
        input_schema = signatures.input_schema(first, mode) if first is not None else {"type": "object"}
    for option, schema in (("input_schema", input_schema), ("output_schema", output_schema)):
        if schema is not None and not (isinstance(schema, Mapping) and schema.get("type") == "object"):
            raise InvalidArgument(f"{option}: {schema!r} of {owner} is not a JSON Schema of type 'object'")
    return ToolSpec(
        name=name,
        route=route,
        description=description or (signatures.summary(first) if first is not None else ""),
        input_schema=dict(input_schema),
        output_schema=None if output_schema is None else dict(output_schema),
        timeout_s=parse_duration("timeout", timeout),
        task_after_s=0.0 if task_after == 0 else parse_duration("task_after", task_after),
        metadata=dict(metadata or {}),
        annotations=dict(annotations or {}),
        updates=check_texts("updates", updates, owner),
        **options,
    )


def prompt_arguments(owner: str, given: Mapping[str, str] | None, schema: Mapping[str, Any]) -> list[PromptArgument]:
    """The arguments of a prompt: the first actor's parameters with their descriptions, or those of `given`."""
    properties: Mapping[str, Any] = schema.get("properties", {})
    for name, described in properties.items():
        _check_text(owner, name, described)
    names = list(properties) or list(given or {})
    for name, text in dict(given or {}).items():
        if name not in names:
            raise InvalidArgument(f"arguments: {name!r} is no parameter of the first actor of {owner}")
        if not isinstance(text, str):
            raise InvalidArgument(f"arguments[{name!r}]: {text!r} of {owner} is not a description")
    return [
        PromptArgument(
            name=name,
            description=(given or {}).get(name) or properties.get(name, {}).get("description", ""),
            required=name in schema.get("required", [] if properties else names),
        )
        for name in names
    ]


def prompt_spec(name: str, route: list[str], *, text: Any, **options: Any) -> PromptSpec:
    """The spec of a prompt whose route has been resolved."""
    if text is not None and not isinstance(text, str):
        raise InvalidArgument(f"text: {text!r} of prompt {name!r} is not a text")
    _check_words(f"prompt {name!r}", options)
    return PromptSpec(name=name, route=route, text=text, **options)


def resource_spec(
    uri: Any, route: list[str], *, text: Any, data: Any, name: Any, mime_type: Any, **options: Any
) -> ResourceSpec:
    """The spec of a resource whose route has been resolved."""
    owner = f"resource {uri!r}"
    if not isinstance(uri, str) or not _URI.fullmatch(uri):
        raise InvalidArgument(f"uri: {uri!r} is not a URI; write one such as notes://all or notes://{{id}}")
    variables = _VARIABLE.findall(uri)
    rest = _VARIABLE.sub("", uri)
    if "{" in rest or "}" in rest:
        raise InvalidArgument(f"uri: {uri!r} has braces that are no variable; write {{name}} or {{+name}}")
    if len(set(variables)) != len(variables):
        raise InvalidArgument(f"uri: {uri!r} has a variable twice; rename one")
    if text is not None and data is not None:
        raise InvalidArgument(f"data: {owner} has text too; give one")
    for field, value, kind in (("text", text, str), ("data", data, bytes)):
        if value is not None and not isinstance(value, kind):
            raise InvalidArgument(f"{field}: {value!r} of {owner} is not {kind.__name__}")
    if variables and not route:
        raise InvalidArgument(f"uri: {uri!r} has variables, which text and data cannot answer; give a route")
    _check_words(owner, {**options, "name": name or "", "mime_type": mime_type or ""})
    return ResourceSpec(
        uri=uri,
        name=name or uri,
        route=route,
        text=text,
        data=data,
        mime_type=mime_type or ("application/octet-stream" if data is not None else "text/plain"),
        variables=variables,
        **options,
    )


def template_schema(owner: str, variables: Sequence[str], schema: Mapping[str, Any]) -> None:
    """Refuse variables that the first actor does not take, and parameters that no variable gives."""
    properties: Mapping[str, Any] = schema.get("properties", {})
    open_ended = "properties" not in schema or schema.get("additionalProperties") is True
    for name in variables:
        if name in properties:
            _check_text(owner, name, properties[name])
        elif not open_ended:
            takes = ", ".join(properties) or "nothing"
            raise InvalidArgument(f"uri: the first actor of {owner} takes no {name!r}; it takes {takes}")
    for name in schema.get("required", []):
        if name not in variables:
            raise InvalidArgument(f"uri: the first actor of {owner} needs {name!r}; write {{{name}}} into the URI")


def completion(where: str, owner: str, actor: str, schema: Mapping[str, Any]) -> Completion:
    """How an actor completes: it takes `value`, and `arguments` if it likes."""
    takes = list(schema["properties"]) if "properties" in schema else list(COMPLETION_TAKES)
    if "value" not in takes or any(one not in COMPLETION_TAKES for one in schema.get("required", [])):
        raise InvalidArgument(
            f"{where}: actor {actor!r} of {owner} takes {', '.join(takes) or 'nothing'}; "
            "what completes takes value: str, and arguments: dict if it likes"
        )
    return Completion(actor=actor, takes=tuple(one for one in COMPLETION_TAKES if one in takes))


def _check_text(owner: str, name: str, described: Any) -> None:
    """Arguments of prompts and templates are text."""
    kinds = described.get("type") if isinstance(described, dict) else None
    listed = set(kinds) if isinstance(kinds, list) else {kinds}
    if not listed & _TYPES:
        raise InvalidArgument(
            f"route: the first actor of {owner} takes {name!r} as {kinds}; MCP sends text, so write {name}: str"
        )


def _check_words(owner: str, options: Mapping[str, Any]) -> None:
    for field in ("name", "title", "description", "mime_type"):
        if field in options and not isinstance(options[field], str):
            raise InvalidArgument(f"{field}: {options[field]!r} of {owner} is not a text")
