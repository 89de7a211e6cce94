"""AsyncAPI 3.0 of what an App declares for the bus (https://www.asyncapi.com/docs/reference/specification/v3.0.0)."""

from __future__ import annotations

from typing import Any

import msgspec

from groundplane.bus import wire
from groundplane.bus.endpoints import CommandEndpoint, Endpoints, EventEndpoint, RpcEndpoint

_TEMPLATE = "#/components/schemas/{name}"
_TYPE = "application/msgpack"
_SHAPES = (wire.RpcRequest, wire.RpcResponse, wire.Event, wire.Command, wire.CommandProgress, wire.CommandCallback)


def document(title: str, version: str, endpoints: Endpoints) -> dict[str, Any]:
    """The document: a channel for each subject, an operation for each handler, schemas of the messages."""
    shapes: dict[str, Any] = {shape.__name__: shape for shape in _SHAPES}
    called: list[RpcEndpoint | CommandEndpoint] = [*endpoints.rpc, *endpoints.commands]
    for one in called:
        name = _name(one)
        shapes[f"{name}.params"], shapes[f"{name}.result"] = one.bound.shapes(f"{name}.params")
    found, components = msgspec.json.schema_components(list(shapes.values()), ref_template=_TEMPLATE)
    schemas = dict(zip(shapes, found, strict=True))  # at once: what has the same name elsewhere gets a longer one
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for rpc in endpoints.rpc:
        _add_rpc(rpc, channels, operations, schemas)
    for event in endpoints.events:
        _add_event(event, channels, operations, schemas)
    for command in endpoints.commands:
        _add_command(command, channels, operations, schemas)
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": version},
        "defaultContentType": _TYPE,
        "channels": channels,
        "operations": operations,
        "components": {"schemas": dict(components)},
    }


def _name(endpoint: RpcEndpoint | CommandEndpoint) -> str:
    """Its subject, which no other has."""
    if isinstance(endpoint, RpcEndpoint):
        return f"rpc.{endpoint.service}.{endpoint.method}"
    return f"commands.{endpoint.service}.{endpoint.command}"


def _add_rpc(
    endpoint: RpcEndpoint, channels: dict[str, Any], operations: dict[str, Any], schemas: dict[str, Any]
) -> None:
    name = _name(endpoint)
    reply = f"{name}.reply"
    request = _with(schemas, "RpcRequest", {"params": schemas[f"{name}.params"]})
    response = _with(schemas, "RpcResponse", {"result": schemas[f"{name}.result"]})
    channels[name] = _channel(name, {"request": request}, endpoint.description)
    channels[reply] = _channel(None, {"response": response}, "The reply subject of the request.")
    operations[name] = {
        **_operation("receive", name, "request", endpoint.description),
        "reply": {
            "channel": {"$ref": f"#/channels/{reply}"},
            "messages": [{"$ref": f"#/channels/{reply}/messages/response"}],
        },
    }


def _add_event(
    endpoint: EventEndpoint, channels: dict[str, Any], operations: dict[str, Any], schemas: dict[str, Any]
) -> None:
    name = _key(f"events.{endpoint.pattern}")
    address, parameters = _address(f"events.{endpoint.pattern}")
    channels[name] = _channel(address, {"event": _with(schemas, "Event", {})}, endpoint.description, parameters)
    operation = name if name not in operations else f"{name}@{endpoint.options.group}"
    operations[operation] = _operation("receive", name, "event", endpoint.description)


def _add_command(
    endpoint: CommandEndpoint, channels: dict[str, Any], operations: dict[str, Any], schemas: dict[str, Any]
) -> None:
    name = _name(endpoint)
    message = _with(schemas, "Command", {"payload": schemas[f"{name}.params"]})
    channels[name] = _channel(name, {"command": message}, endpoint.description)
    operations[name] = _operation("receive", name, "command", endpoint.description)
    parameters = {"commandId": {"description": "The message_id of the command."}}
    for kind, shape, more in (
        ("progress", "CommandProgress", {}),
        ("callback", "CommandCallback", {"result": schemas[f"{name}.result"]}),
    ):
        told = f"{name}.{kind}"
        messages = {kind: _with(schemas, shape, more)}
        channels[told] = _channel(f"commands.{kind}.{{commandId}}", messages, "", parameters)
        operations[told] = _operation("send", told, kind, "")


def _operation(action: str, channel: str, message: str, description: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
        **_described(description),
    }


def _with(schemas: dict[str, Any], shape: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A message of this shape, some of whose fields are known more exactly."""
    payload: dict[str, Any] = schemas[shape]
    if fields:
        payload = {"allOf": [payload, {"type": "object", "properties": fields}]}
    return {"name": shape, "contentType": _TYPE, "payload": payload}


def _channel(
    address: str | None, messages: dict[str, Any], description: str, parameters: dict[str, Any] | None = None
) -> dict[str, Any]:
    more = {"parameters": parameters} if parameters else {}
    return {"address": address, "messages": messages, **_described(description), **more}


def _described(text: str) -> dict[str, str]:
    return {"description": text} if text else {}


def _address(pattern: str) -> tuple[str, dict[str, Any]]:
    """A pattern as an address with parameters."""
    parameters: dict[str, Any] = {}
    tokens = []
    for number, token in enumerate(pattern.split(".")):
        if token in ("*", ">"):
            name = "rest" if token == ">" else f"part{number}"
            parameters[name] = {"description": "One or more names." if token == ">" else "One name."}
            token = f"{{{name}}}"
        tokens.append(token)
    return ".".join(tokens), parameters


def _key(pattern: str) -> str:
    """A pattern as a key that no other has: no name begins with `_`."""
    return pattern.replace("*", "_any").replace(">", "_rest")
