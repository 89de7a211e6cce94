"""Events as CloudEvents 1.0 (https://github.com/cloudevents/spec, structured mode in JSON).

`type` is domain and type joined by a dot; the version of the payload's shape is the extension `dataversion`, headers
are extensions of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from groundplane.bus import wire
from groundplane.core.codec import encode
from groundplane.core.errors import InvalidArgument

CONTENT_TYPE = "content-type"
MEDIA_TYPE = "application/cloudevents+json"
_EXTENSION = re.compile("[a-z0-9]{1,64}")
_ATTRIBUTES = "specversion id source type time datacontenttype data data_base64 dataversion correlationid"
_KNOWN = frozenset(_ATTRIBUTES.split())


def to_cloudevent(event: wire.Event) -> dict[str, Any]:
    """The attributes and data of an event."""
    found = {
        "specversion": "1.0",
        "id": event.message_id,
        "source": event.source or "groundplane",
        "type": f"{event.domain}.{event.event_type}",
        "time": event.timestamp,
        "datacontenttype": "application/json",
        "dataversion": event.version,
        "data": event.payload,
    }
    if event.correlation_id:
        found["correlationid"] = event.correlation_id
    return {**{k: v for k, v in event.headers.items() if _is_extension(k)}, **found}


def check_extensions(headers: Mapping[str, str]) -> None:
    """`invalid_argument` for a header that no attribute of a CloudEvent can carry."""
    for name in headers:
        if not _is_extension(name):
            raise InvalidArgument(
                f"headers: {name!r} is no attribute of a CloudEvent; use lower-case letters and digits, no name it has"
            )


def _is_extension(name: str) -> bool:
    return name not in _KNOWN and _EXTENSION.fullmatch(name) is not None


def write(event: wire.Event) -> bytes:
    """An event in structured mode."""
    return encode(to_cloudevent(event), "json")


def read(data: bytes) -> wire.Event:
    """The event in structured mode; `invalid_argument` (`msg_parsing_error`) where it is none."""
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
        domain, _, event_type = found["type"].partition(".")
        if found["specversion"] != "1.0" or not found["id"] or not found["source"]:
            raise InvalidArgument("message: is no CloudEvent of version 1.0", reason="msg_parsing_error")
        return msgspec.convert(
            {
                "message_id": found["id"],
                "source": found["source"],
                "timestamp": found.get("time", ""),
                "correlation_id": found.get("correlationid", ""),
                "headers": {k: v for k, v in found.items() if k not in _KNOWN and isinstance(v, str)},
                "domain": domain,
                "event_type": event_type,
                "payload": _data(found),
                "version": found.get("dataversion", "1.0"),
            },
            wire.Event,
        )
    except (KeyError, AttributeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidArgument(f"message: is no CloudEvent: {error!r}", reason="msg_parsing_error") from error


def _data(found: dict[str, Any]) -> Any:
    if "data_base64" not in found:
        return found.get("data")
    if "data" in found:
        raise InvalidArgument("message: the CloudEvent has data and data_base64", reason="msg_parsing_error")
    return msgspec.convert(found["data_base64"], bytes)
