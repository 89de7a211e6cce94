"""Records of the registry: where they are kept and how they are read. No input or output.

    instances.<service>.<instance>     JSON in camelCase (`port.Instance`), with a TTL
    definitions.<service>              JSON in camelCase (`Definition`), without

Programs in other languages may read and write them; members that this version does not know are left out of account.
"""

from __future__ import annotations

from typing import Any

import msgspec

from groundplane.core import codec
from groundplane.core.errors import InvalidArgument
from groundplane.services.names import check_metadata, check_token, check_version
from groundplane.services.port import SCHEMA_VERSION, Instance

BUCKET = "services"
INSTANCES, DEFINITIONS = "instances.", "definitions."
TEXT_CHARS_MAX = 2000


class Definition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is said of a service, whether or not an instance of it is there. Times are ISO 8601 in UTC."""

    service_name: str
    owner: str = ""
    description: str = ""
    version: str = ""
    metadata: dict[str, Any] = {}
    created_at: str = ""
    updated_at: str = ""
    schema_version: int = SCHEMA_VERSION


class Defined(msgspec.Struct, frozen=True, kw_only=True):
    """A definition as it is stored, with its revision."""

    definition: Definition
    revision: int


def instance_key(service: str, instance_id: str) -> str:
    """Where an instance is kept. Raises `invalid_argument` for bad names."""
    return f"{INSTANCES}{check_token('service', service)}.{check_token('instance', instance_id)}"


def instances_prefix(service: str | None) -> str:
    """What the keys of a service's instances begin with, or those of all."""
    return INSTANCES if service is None else f"{INSTANCES}{check_token('service', service)}."


def definition_key(service: str) -> str:
    """Where a definition is kept."""
    return f"{DEFINITIONS}{check_token('service', service)}"


def names_of(key: str) -> tuple[str, str] | None:
    """Service and instance of a key; None for any other key."""
    parts = key.removeprefix(INSTANCES).split(".") if key.startswith(INSTANCES) else []
    return (parts[0], parts[1]) if len(parts) == 2 else None


def encode(record: Instance | Definition) -> bytes:
    """The record as JSON."""
    return codec.encode(record, "json")


def decode_instance(key: str, value: bytes) -> Instance:
    """The instance at `key`. `invalid_argument` for what is none, or another one than its key says."""
    instance = codec.decode(value, Instance)
    if names_of(key) != (instance.service_name, instance.instance_id):
        raise InvalidArgument(
            f"instance: {instance.service_name!r} {instance.instance_id!r} stands at the key {key!r}",
            reason="msg_parsing_error",
        )
    return instance


def checked(definition: Definition) -> Definition:
    """The definition when all of it may be stored; else `invalid_argument` with the field."""
    check_token("serviceName", definition.service_name)
    check_version(definition.version)
    for field in ("owner", "description"):
        text = getattr(definition, field)
        if not isinstance(text, str) or len(text) > TEXT_CHARS_MAX:
            raise InvalidArgument(
                f"{field}: {repr(text)[:100]} must be text of at most {TEXT_CHARS_MAX} characters",
                details={"field": field},
            )
    return msgspec.structs.replace(definition, metadata=check_metadata(definition.metadata))


__all__ = [
    "BUCKET",
    "DEFINITIONS",
    "INSTANCES",
    "Defined",
    "Definition",
    "checked",
    "decode_instance",
    "definition_key",
    "encode",
    "instance_key",
    "instances_prefix",
    "names_of",
]
