"""AsyncAPI 3.0 of what an App declares for the bus (https://www.asyncapi.com/docs/reference/specification/v3.0.0)."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from groundplane.bus import wire
from groundplane.bus.endpoints import CommandEndpoint, Endpoints, EventEndpoint, RpcEndpoint
from groundplane.bus.handlers import Bound

_TEMPLATE = "#/components/schemas/{name}"
_TYPES = ["application/msgpack", "application/json"]


def document(title: str, version: str, endpoints: Endpoints) -> dict[str, Any]:
    """The document: a channel for each subject, an operation for each handler, schemas of the messages."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    _, schemas = msgspec.json.schema_components(
        [wire.RpcRequest, wire.RpcResponse, wire.Event, wire.Command, wire.CommandProgress, wire.CommandCallback],
        ref_template=_TEMPLATE,
    )
    for rpc in endpoints.rpc:
        _add_rpc(rpc, channels, operations, schemas)
    for event in endpoints.events:
        _add_event(event, channels, operations)
    for command in endpoints.commands:
        _add_command(command, channels, operations, schemas)
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": version},
        "defaultContentType": _TYPES[0],
        "channels": channels,
        "operations": operations,
        "components": {"schemas": dict(schemas)},
    }


def _add_rpc(
    endpoint: RpcEndpoint, channels: dict[str, Any], operations: dict[str, Any], schemas: dict[str, Any]
) -> None:
    name = f"rpc_{endpoint.service}_{endpoint.method}"
    params, result = _own(name, endpoint.bound, schemas)
    request = _with("RpcRequest", {"params": params})
    response = _with("RpcResponse", {"result": result})
    channels[name] = _channel(
        f"rpc.{endpoint.service}.{endpoint.method}", {"request": request, "response": response}, endpoint.description
    )
    operations[name] = {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/request"}],
        "reply": {
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/response"}],
        },
        **_described(endpoint.description),
    }


def _add_event(endpoint: EventEndpoint, channels: dict[str, Any], operations: dict[str, Any]) -> None:
    name = _key(f"events_{endpoint.pattern}")
    address, parameters = _address(f"events.{endpoint.pattern}")
    channels[name] = {
        **_channel(address, {"event": _with("Event", {})}, endpoint.description),
        **({"parameters": parameters} if parameters else {}),
    }
    operation = name if name not in operations else _key(f"{name}_{endpoint.options.group}")
    operations[operation] = {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/event"}],
        **_described(endpoint.description),
    }


def _add_command(
    endpoint: CommandEndpoint, channels: dict[str, Any], operations: dict[str, Any], schemas: dict[str, Any]
) -> None:
    name = f"commands_{endpoint.service}_{endpoint.command}"
    params, result = _own(name, endpoint.bound, schemas)
    subject = f"commands.{endpoint.service}.{endpoint.command}"
    channels[name] = _channel(subject, {"command": _with("Command", {"payload": params})}, endpoint.description)
    operations[name] = {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/command"}],
        **_described(endpoint.description),
    }
    for kind, shape, more in (
        ("progress", "CommandProgress", {}),
        ("callback", "CommandCallback", {"result": result}),
    ):
        told = f"{name}_{kind}"
        channels[told] = {
            **_channel(f"commands.{kind}.{{commandId}}", {kind: _with(shape, more)}, ""),
            "parameters": {"commandId": {"description": "The message_id of the command."}},
        }
        operations[told] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{told}"},
            "messages": [{"$ref": f"#/channels/{told}/messages/{kind}"}],
        }


def _own(name: str, bound: Bound, schemas: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """References to the schemas of a handler's arguments and of its result."""
    params, result, others = bound.schemas(_TEMPLATE)
    schemas.update(others)
    schemas[f"{name}_params"], schemas[f"{name}_result"] = params, result
    return _reference(f"{name}_params"), _reference(f"{name}_result")


def _with(shape: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A message of this shape, some of whose fields are known more exactly."""
    payload: dict[str, Any] = _reference(shape)
    if fields:
        payload = {"allOf": [payload, {"type": "object", "properties": fields}]}
    return {"name": shape, "contentType": _TYPES[0], "payload": payload}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": _TEMPLATE.format(name=name)}


def _channel(address: str, messages: dict[str, Any], description: str) -> dict[str, Any]:
    return {"address": address, "messages": messages, **_described(description)}


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


def _key(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text.replace("*", "any").replace(">", "rest"))
