"""The reference of the HTTP interface, from the OpenAPI document that a gateway serves (used by tools/reference.py)."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METHODS = ("get", "post", "put", "patch", "delete")


def served_document() -> dict[str, Any]:
    """The document of a gateway that is opened for this, on embedded storage in a temporary folder."""
    return asyncio.run(_document())


async def _document() -> dict[str, Any]:
    from groundplane.core.settings import Settings
    from groundplane.gateway import Gateway, ToolTable
    from groundplane.plane import Plane

    with tempfile.TemporaryDirectory(prefix="groundplane-docs-") as folder:
        async with Plane.open(Settings(state=Path(folder)), upgrade=True) as plane:
            async with Gateway.open(jobs=plane.jobs, queues=plane.queues, tools=ToolTable()) as gateway:
                return gateway.openapi


def page(document: dict[str, Any]) -> str:
    """Markdown: the operations by tag, then the shapes."""
    out = [
        "# HTTP interface",
        "",
        "What a gateway serves beside `/mcp`. This page is made from its OpenAPI 3.1 document, which it serves at",
        "`/openapi.json`; the same document is [here](openapi.json).",
        "",
    ]
    for tag, operations in sorted(_by_tag(document).items()):
        out += [f"## {tag.capitalize()}", ""]
        for method, path, operation in operations:
            out += _operation(method, path, operation, document)
    out += ["## Shapes", ""]
    for name, schema in document["components"]["schemas"].items():
        out += [f"### {name}", "", *_shape(schema), ""]
    return "\n".join(out)


def _by_tag(document: dict[str, Any]) -> dict[str, list[tuple[str, str, dict[str, Any]]]]:
    found: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                operation = item[method]
                found.setdefault((operation.get("tags") or ["other"])[0], []).append((method.upper(), path, operation))
    return found


def _operation(method: str, path: str, operation: dict[str, Any], document: dict[str, Any]) -> Iterator[str]:
    yield from (f"### `{method} {path}`", "", operation["summary"], "")
    rows = [_parameter(one) for one in operation.get("parameters", ()) if one["in"] != "path"]
    body = operation.get("requestBody")
    for media_type, content in (body["content"] if body else {}).items():
        properties, required = content["schema"].get("properties", {}), content["schema"].get("required", ())
        rows += [_row(name, f"body ({media_type})", one, name in required) for name, one in properties.items()]
    if rows:
        yield from ("| name | where | type | |", "|---|---|---|---|", *rows, "")
    problems = []
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            problems.append(status)
            continue
        (content,) = answer.get("content", {"": {"schema": {}}}).items()
        shape = f", {_type(content[1]['schema'])}" if content[1]["schema"].get("$ref") else ""
        yield f"* **{status}**{shape}: {answer['description']}"
    yield from (f"* {', '.join(problems)}: a problem ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457))", "")


def _parameter(one: dict[str, Any]) -> str:
    return _row(one["name"], one["in"], {**one["schema"], "description": one.get("description", "")}, False)


def _row(name: str, where: str, schema: dict[str, Any], required: bool) -> str:
    said = [schema.get("description", ""), f"Default `{json.dumps(schema['default'])}`." if "default" in schema else ""]
    needed = "**needed** " if required else ""
    return f"| `{name}` | {where} | {_type(schema)} | {needed}{' '.join(filter(None, said))} |"


def _shape(schema: dict[str, Any]) -> Iterator[str]:
    if "properties" not in schema:
        yield _type(schema)
        return
    yield from ("| member | type | |", "|---|---|---|")
    for name, one in schema["properties"].items():
        yield f"| `{name}` | {_type(one)} | {one.get('description', '')} |"


def _type(schema: dict[str, Any]) -> str:
    """A type in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for alternatives in ("anyOf", "oneOf"):
        if alternatives in schema:
            return " or ".join(map(_type, schema[alternatives]))
    if "enum" in schema:
        return "one of " + ", ".join(f"`{one}`" for one in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    kind = schema.get("type", "any value")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array" and "items" in schema:
        return f"list of {_type(schema['items'])}"
    bounds = [f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema]
    return ", ".join([schema.get("format", kind), *bounds])


_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "maxLength": "characters at most"}
