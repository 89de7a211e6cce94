"""Names of services and instances, versions, metadata: what may be one. No input or output."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from groundplane.core import codec
from groundplane.core.errors import InvalidArgument

METADATA_BYTES_MAX = 64 * 1024
VERSION_CHARS_MAX = 64
_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def check_token(field: str, value: object) -> str:
    """`value` when it is the name of a service, an instance or a group: 1 to 64 ASCII letters, digits, `_` or `-`,
    beginning with a letter or a digit, as a name of the bus.
    """
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise InvalidArgument(
            f"{field}: {_shown(value)} is not a name; use 1 to 64 ASCII letters, digits, '_' or '-', beginning with a "
            "letter or a digit",
            details={"field": field},
        )
    return value


def check_version(value: object) -> str:
    """`value` when it is a version: at most 64 printable characters; "" says that there is none."""
    if not isinstance(value, str) or len(value) > VERSION_CHARS_MAX or not value.isprintable():
        raise InvalidArgument(
            f"version: {_shown(value)} must be at most {VERSION_CHARS_MAX} printable characters, as '1.4.0'",
            details={"field": "version"},
        )
    return value


def check_metadata(value: object) -> dict[str, Any]:
    """`value` as a dict when JSON carries it within 64 KiB."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidArgument(
            f"metadata: {_shown(value)} must be an object with string keys", details={"field": "metadata"}
        )
    try:
        size = len(codec.encode(dict(value), "json"))
    except InvalidArgument as error:
        raise InvalidArgument(f"metadata: {error.message}", details={"field": "metadata"}) from error
    if size > METADATA_BYTES_MAX:
        raise InvalidArgument(
            f"metadata: {size} bytes of JSON are more than {METADATA_BYTES_MAX}; keep large things in blobs",
            reason="payload_too_large",
            details={"field": "metadata", "bytes": size},
        )
    return dict(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


__all__ = ["METADATA_BYTES_MAX", "check_metadata", "check_token", "check_version"]
