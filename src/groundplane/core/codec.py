"""MessagePack by default, JSON accepted everywhere: told apart by the first byte.

A map or array of MessagePack begins with a byte of 0x80 and above, a JSON text with an ASCII byte; payloads that are
scalars are always inside a map (the envelope), so the first byte decides.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, TypeVar, overload

import msgspec

from groundplane.core.errors import InvalidArgument

Codec = Literal["msgpack", "json"]
T = TypeVar("T")

DEPTH_MAX = 200
_msgpack_encoder = msgspec.msgpack.Encoder()
_json_encoder = msgspec.json.Encoder()


def codec_of(data: bytes) -> Codec:
    """The codec that `data` is in, by its first byte."""
    return "msgpack" if data[:1] >= b"\x80" else "json"


def encode(value: Any, codec: Codec = "msgpack") -> bytes:
    """`value` as bytes. What cannot be carried (an unknown type, too deep, NaN in JSON) is `InvalidArgument`."""
    try:
        if codec == "msgpack":
            return _msgpack_encoder.encode(value)
        if codec != "json":
            raise InvalidArgument(f"codec: {codec!r} is not 'msgpack' or 'json'")
        _refuse_nan(value)
        return _json_encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidArgument(f"value: cannot be written as {codec}: {error}", reason="msg_parsing_error") from error


@overload
def decode(data: bytes) -> Any: ...
@overload
def decode(data: bytes, type_: type[T]) -> T: ...
def decode(data: bytes, type_: Any = Any) -> Any:
    """The value in `data`, validated against `type_`; anything else is `InvalidArgument` with reason
    `msg_parsing_error`.
    """
    try:
        if data[:1] >= b"\x80":  # as `codec_of`
            if isinstance(type_, type):
                return _msgpack_decoder(type_).decode(data)
            return msgspec.msgpack.decode(data, type=type_)
        return msgspec.json.decode(data, type=type_)
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidArgument(f"message: cannot be read: {error}", reason="msg_parsing_error") from error


@functools.lru_cache(maxsize=256)
def _msgpack_decoder(type_: type[T]) -> msgspec.msgpack.Decoder[T]:
    return msgspec.msgpack.Decoder(type_)


def _refuse_nan(value: Any, depth: int = 0) -> None:
    """JSON has no NaN and no infinity; a silent null would be a changed payload."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value!r} is no JSON number")
    elif isinstance(value, dict):
        for item in value.values():
            _refuse_nan(item, depth + 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            _refuse_nan(item, depth + 1)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _refuse_nan(getattr(value, name), depth + 1)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _refuse_nan(getattr(value, field.name), depth + 1)
    if depth > 5 * DEPTH_MAX:
        raise ValueError("nested too deeply")
