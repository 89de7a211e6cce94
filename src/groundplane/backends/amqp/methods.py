"""Methods other than those of the hot path: written and read by pamqp, its failures made ours."""

from __future__ import annotations

import struct
from typing import Any

from groundplane.backends.amqp.frames import method_frame
from groundplane.backends.amqp.tables import WireError
from groundplane.core.errors import FailedPrecondition, InvalidArgument

try:
    from pamqp import base, commands
except ModuleNotFoundError as error:
    raise FailedPrecondition(
        "queues: amqp:// needs the package of the extra rabbitmq; pip install 'groundplane[rabbitmq]'",
        reason="missing_extra",
    ) from error

__all__ = [
    "ACK",
    "DELIVER",
    "GET_OK",
    "NACK",
    "RETURN",
    "base",
    "build",
    "commands",
    "decode_method",
    "encode_method",
    "method_index",
]

_INDEX = struct.Struct(">I")

DELIVER = commands.Basic.Deliver.index
GET_OK = commands.Basic.GetOk.index
RETURN = commands.Basic.Return.index
ACK = commands.Basic.Ack.index
NACK = commands.Basic.Nack.index

_Connection, _Channel, _Queue = commands.Connection, commands.Channel, commands.Queue
_Exchange, _Basic = commands.Exchange, commands.Basic
_KINDS: tuple[type[base.Frame], ...] = (
    _Connection.Start, _Connection.Secure, _Connection.Tune, _Connection.OpenOk, _Connection.Close,
    _Connection.CloseOk, _Connection.Blocked, _Connection.Unblocked,
    _Channel.OpenOk, _Channel.Flow, _Channel.Close, _Channel.CloseOk,
    _Exchange.DeclareOk, _Exchange.DeleteOk, _Exchange.BindOk, _Exchange.UnbindOk,
    _Queue.DeclareOk, _Queue.DeleteOk, _Queue.BindOk, _Queue.UnbindOk, _Queue.PurgeOk,
    _Basic.QosOk, _Basic.ConsumeOk, _Basic.Cancel, _Basic.CancelOk, _Basic.GetEmpty,
    commands.Confirm.SelectOk,
)  # fmt: skip
_OF_A_BROKER = {kind.index: kind for kind in _KINDS}


def encode_method(channel: int, method: base.Frame) -> bytes:
    """The frame of a method. `invalid_argument` for a name or an argument that AMQP does not carry."""
    try:
        arguments = method.marshal()
    except (ValueError, TypeError, struct.error) as error:
        raise InvalidArgument(f"{method.name}: {error}; mend the name or the arguments") from error
    return method_frame(channel, method.index >> 16, method.frame_id, arguments)


def build(kind: type[base.Frame], **values: Any) -> base.Frame:
    """A method of that kind; pamqp checks names by itself."""
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        shown = {name: value for name, value in values.items() if value not in (None, "", False)}
        raise InvalidArgument(f"{kind.name}: {shown!r}: {error}; mend the name or the arguments") from error


def method_index(payload: bytes) -> int:
    """Class and method in one number, as pamqp's `index`."""
    if len(payload) < 4:
        raise WireError("a method frame that is cut short")
    index: int = _INDEX.unpack_from(payload)[0]
    return index


def decode_method(payload: bytes) -> base.Frame:
    """Any method of a broker. `WireError` for one that no broker sends, or that cannot be read."""
    index = method_index(payload)
    kind = _OF_A_BROKER.get(index)
    if kind is None:
        raise WireError(f"the method {index >> 16}.{index & 0xFFFF}, which no broker sends")
    method: base.Frame = kind()
    try:
        method.unmarshal(payload[4:])
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, OSError, RecursionError, struct.error) as error:
        raise WireError(f"a {method.name} that cannot be read ({error})") from error
    return method
