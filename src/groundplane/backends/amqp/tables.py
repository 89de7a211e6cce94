"""Field tables and the properties of a message, encoded and decoded by hand: a message has both, on the hot path.

Types of values: bool, int (64 bits), float, str, bytes, None, datetime (whole seconds, UTC), Decimal (read only), lists
and dicts of these. Integers are written as 64 bits, so that a value never changes its type with its size.
Sources: AMQP 0-9-1, section 4.2.5, with RabbitMQ's errata (the letters of the types); section 1.8.3 (properties).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from groundplane.core.errors import InvalidArgument

DEPTH_MAX = 32
_KEY_BYTES_MAX = 255
_NAMES_MAX = 1024
_names: dict[str, bytes] = {}
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_LETTER_U32 = struct.Struct(">cI")
_LETTER_I64 = struct.Struct(">cq")
_LETTER_F64 = struct.Struct(">cd")
_LETTER_U64 = struct.Struct(">cQ")
_FIXED = {
    ord("b"): struct.Struct(">b"),
    ord("B"): struct.Struct(">B"),
    ord("s"): struct.Struct(">h"),
    ord("u"): struct.Struct(">H"),
    ord("I"): struct.Struct(">i"),
    ord("i"): struct.Struct(">I"),
    ord("l"): struct.Struct(">q"),
    ord("L"): struct.Struct(">q"),
    ord("f"): struct.Struct(">f"),
    ord("d"): struct.Struct(">d"),
    ord("t"): struct.Struct(">?"),
}
_DECIMAL = struct.Struct(">Bi")
_U64 = struct.Struct(">Q")


class WireError(ValueError):
    """Bytes that cannot be decoded. Never leaves this package as it is."""


class RefusedHeader(WireError):
    """A broker of our protocol read something else than its header first."""


class Properties(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a message; None means absent. `expiration` is milliseconds as text, `delivery_mode` 2 is
    durable, `timestamp` is Unix seconds.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None


# -- encoding ----------------------------------------------------------------------------------------------------------


def encode_properties(
    headers: Mapping[str, Any] | None = None,
    *,
    delivery_mode: int | None = 2,
    message_id: str | None = None,
    expiration: str | None = None,
    **others: Any,
) -> bytes:
    """Flags and values as they follow in a content header. `others` are fields of `Properties`.

    `invalid_argument` for a value that AMQP cannot carry, or a text of more than 255 bytes.
    """
    if others:
        return _encode_all(
            {**others, "headers": headers, "delivery_mode": delivery_mode, "message_id": message_id,
             "expiration": expiration}
        )  # fmt: skip
    flags, parts = 0, [b""]  # what most messages have, in its order
    if headers:
        flags |= _HEADERS
        parts.append(_table(headers, "headers", 0))
    if delivery_mode is not None:
        flags |= _DELIVERY_MODE
        parts.append(_encode_property("delivery_mode", "octet", delivery_mode))
    if expiration is not None:
        flags |= _EXPIRATION
        parts.append(short_text("expiration", expiration))
    if message_id is not None:
        flags |= _MESSAGE_ID
        parts.append(short_text("message_id", message_id))
    parts[0] = _U16.pack(flags)
    return b"".join(parts)


def _encode_all(values: dict[str, Any]) -> bytes:
    flags, parts = 0, [b""]
    for bit, name, kind in _PROPERTIES:
        value = values.pop(name, None)
        if value is None or (kind == "table" and not value):
            continue
        flags |= bit
        parts.append(_encode_property(name, kind, value))
    if values:
        raise InvalidArgument(f"properties: {sorted(values)!r} are no properties of a message")
    parts[0] = _U16.pack(flags)
    return b"".join(parts)


def encode_table(values: Mapping[str, Any], field: str = "headers") -> bytes:
    """A field table with its length in front. Bounds are checked: nothing is cut off."""
    return _table(values, field, 0)


def _encode_property(name: str, kind: str, value: Any) -> bytes:
    if kind == "table":
        return encode_table(value)
    try:
        if kind == "text":
            return short_text(name, value)
        return (_U64 if kind == "time" else _FIXED[ord("B")]).pack(value)
    except (struct.error, TypeError) as error:
        raise InvalidArgument(f"{name}: {value!r} is not a number that fits; {error}") from error


def short_text(field: str, value: str) -> bytes:
    """A text of at most 255 bytes, with its length in front."""
    data = _utf8(field, value)
    if len(data) > 255:
        raise InvalidArgument(f"{field}: {value!r} has {len(data)} bytes; AMQP carries at most 255")
    return bytes((len(data),)) + data


def _utf8(field: str, value: str) -> bytes:
    try:
        return value.encode()
    except (UnicodeEncodeError, AttributeError) as error:
        raise InvalidArgument(f"{field}: {value!r} is no Unicode text; {error}") from error


def _table(values: Mapping[str, Any], field: str, depth: int) -> bytes:
    parts = [b""]
    add, pack = parts.append, _LETTER_U32.pack
    for key, value in values.items():
        add(_names.get(key) or _name(key, field))
        if type(value) is str:  # most values, most of the time
            data = _utf8(field, value)
            add(pack(b"S", len(data)))
            add(data)
        elif type(value) is bytes:
            add(pack(b"x", len(value)))
            add(value)
        else:
            add(_value(value, field, depth))
    body = b"".join(parts)
    return _U32.pack(len(body)) + body


def _name(key: str, field: str) -> bytes:
    """A name with its length in front, remembered: there are few names."""
    name = _utf8(field, key)
    if not name or len(name) > _KEY_BYTES_MAX:
        raise InvalidArgument(f"{field}: {key!r} is no name; use a text of 1 to {_KEY_BYTES_MAX} bytes")
    if len(_names) >= _NAMES_MAX:
        _names.clear()
    found = _names[key] = bytes((len(name),)) + name
    return found


def _value(value: Any, field: str, depth: int) -> bytes:
    if depth >= DEPTH_MAX:
        raise InvalidArgument(f"{field}: more than {DEPTH_MAX} levels; send less depth")
    match value:
        case None:
            return b"V"
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int():
            if not -(2**63) <= value < 2**63:
                raise InvalidArgument(f"{field}: {value!r} does not fit into 64 bits; send it as text")
            return _LETTER_I64.pack(b"l", value)
        case float():
            return _LETTER_F64.pack(b"d", value)
        case str():
            data = _utf8(field, value)
            return _LETTER_U32.pack(b"S", len(data)) + data
        case bytes() | bytearray():
            return _LETTER_U32.pack(b"x", len(value)) + bytes(value)
        case datetime():
            return _LETTER_U64.pack(b"T", _seconds(value, field))
        case Mapping():
            return b"F" + _table(value, field, depth + 1)
        case list() | tuple():
            body = b"".join([_value(one, field, depth + 1) for one in value])
            return _LETTER_U32.pack(b"A", len(body)) + body
    raise InvalidArgument(f"{field}: {value!r} cannot be carried; use text, numbers, bytes, lists or dicts")


def _seconds(value: datetime, field: str) -> int:
    if value.tzinfo is None or value.timestamp() < 0:
        raise InvalidArgument(f"{field}: {value!r} needs a time zone and a time after 1970")
    return int(value.timestamp())


# -- decoding ----------------------------------------------------------------------------------------------------------


def decode_properties(data: bytes) -> Properties:
    """What `encode_properties` or any other client wrote. `WireError` for bytes that are none, or too many."""
    try:
        values, at = _decode_properties(data)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise WireError(f"properties that cannot be read ({error})") from error
    if at != len(data):
        raise WireError(f"properties with {len(data) - at} bytes too many")
    return Properties(**values)


def decode_headers(data: bytes) -> dict[str, Any]:
    """The headers alone, out of the bytes of all properties: what every delivery is asked for."""
    try:
        (flags,) = _U16.unpack_from(data, 0)
        if not flags & _HEADERS:
            return {}
        at = 2
        for bit in (_CONTENT_TYPE, _CONTENT_ENCODING):
            if flags & bit:
                at += 1 + data[at]
        return decode_table(data, at)[0]
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise WireError(f"headers that cannot be read ({error})") from error


def decode_table(data: bytes, at: int, depth: int = 0) -> tuple[dict[str, Any], int]:
    """The table that begins at `at`, and where it ends. Linear in its size; a value that reaches beyond is refused."""
    (size,) = _U32.unpack_from(data, at)
    at += 4
    end = at + size
    if end > len(data) or depth > DEPTH_MAX:
        raise WireError("a table that is longer or deeper than its frame")
    found: dict[str, Any] = {}
    while at < end:
        start = at + 1
        at = start + data[at]
        key = data[start:at].decode()
        if at < end and data[at] == 0x53:  # S: a text
            (length,) = _U32.unpack_from(data, at + 1)
            start = at + 5
            at = start + length
            found[key] = _text(data[start:at])
        else:
            found[key], at = _decode_value(data, at, end, depth)
    if at != end:
        raise WireError("a value that is longer than its table")
    return found, end


def _decode_value(data: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    if at >= end:
        raise WireError("a name without a value")
    letter = data[at]
    at += 1
    fixed = _FIXED.get(letter)
    if fixed is not None:
        return fixed.unpack_from(data, at)[0], at + fixed.size
    if letter in b"Sx":
        (length,) = _U32.unpack_from(data, at)
        start, at = at + 4, at + 4 + length
        return (_text(data[start:at]) if letter == 0x53 else data[start:at]), at
    if letter == 0x46:  # F
        return decode_table(data, at, depth + 1)
    if letter == 0x41:  # A
        return _decode_array(data, at, end, depth + 1)
    if letter == 0x54:  # T
        return _moment(_U64.unpack_from(data, at)[0]), at + 8
    if letter == 0x44:  # D
        scale, digits = _DECIMAL.unpack_from(data, at)
        return Decimal(digits).scaleb(-scale), at + 5
    if letter == 0x56:  # V
        return None, at
    raise WireError(f"a value of the unknown type {bytes((letter,))!r}")


def _decode_array(data: bytes, at: int, limit: int, depth: int) -> tuple[list[Any], int]:
    (size,) = _U32.unpack_from(data, at)
    at += 4
    end = at + size
    if end > limit or depth > DEPTH_MAX:
        raise WireError("an array that is longer or deeper than its table")
    found = []
    while at < end:
        value, at = _decode_value(data, at, end, depth)
        found.append(value)
    if at != end:
        raise WireError("a value that is longer than its array")
    return found, end


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data  # a long string is bytes by the specification: of others' messages it need not be text


def _moment(seconds: int) -> datetime | int:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return seconds  # of others' messages: milliseconds, or nonsense


def _decode_properties(data: bytes) -> tuple[dict[str, Any], int]:
    (flags,) = _U16.unpack_from(data, 0)
    if flags & 0x0003:
        raise WireError("properties with flags that AMQP 0-9-1 does not have")
    at = 2
    values: dict[str, Any] = {}
    for bit, name, kind in _PROPERTIES:
        if not flags & bit:
            continue
        if kind == "text":
            start = at + 1
            at = start + data[at]
            if at > len(data):
                raise WireError(f"a property {name} that is longer than its frame")
            values[name] = data[start:at].decode()
        elif kind == "table":
            values[name], at = decode_table(data, at)
        elif kind == "time":
            (values[name],) = _U64.unpack_from(data, at)
            at += 8
        else:
            values[name] = data[at]
            at += 1
    return values, at


_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS = 0x8000, 0x4000, 0x2000
_DELIVERY_MODE, _EXPIRATION, _MESSAGE_ID = 0x1000, 0x0100, 0x0080
_PROPERTIES = (
    (_CONTENT_TYPE, "content_type", "text"),
    (_CONTENT_ENCODING, "content_encoding", "text"),
    (_HEADERS, "headers", "table"),
    (_DELIVERY_MODE, "delivery_mode", "octet"),
    (0x0800, "priority", "octet"),
    (0x0400, "correlation_id", "text"),
    (0x0200, "reply_to", "text"),
    (_EXPIRATION, "expiration", "text"),
    (_MESSAGE_ID, "message_id", "text"),
    (0x0040, "timestamp", "time"),
    (0x0020, "type", "text"),
    (0x0010, "user_id", "text"),
    (0x0008, "app_id", "text"),
    (0x0004, "cluster_id", "text"),
)
EMPTY = encode_properties(delivery_mode=2)
"""The properties of a durable message without any other."""
