"""Channel 0: the greeting, the login, the virtual host; `blocked`; the two sides' `close`."""

from __future__ import annotations

import asyncio
import platform
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from groundplane._version import __version__
from groundplane.backends.amqp.address import FRAME_SIZE_MIN, Address
from groundplane.backends.amqp.errors import from_reply, malformed
from groundplane.backends.amqp.frames import METHOD, PROTOCOL_HEADER
from groundplane.backends.amqp.methods import base, build, commands, decode_method, encode_method
from groundplane.backends.amqp.tables import WireError
from groundplane.backends.amqp.wire import Wire
from groundplane.core.errors import FailedPrecondition, GroundplaneError, PermissionDenied

VERSION_MIN = (3, 10)
_CAPABILITIES = {
    "publisher_confirms": True,
    "exchange_exchange_bindings": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}
_Method = TypeVar("_Method", bound=base.Frame)


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker says of itself."""

    product: str
    version: str
    cluster: str
    capabilities: frozenset[str]


class Agreed(msgspec.Struct, frozen=True, kw_only=True):
    """What was negotiated."""

    server: ServerInfo
    frame_max: int
    channel_max: int
    heartbeat_s: int


class Control:
    """The conversation on channel 0. `on_blocked(reason or None)` tells of the broker's alarm."""

    def __init__(self, address: Address, peer: str, on_blocked: Callable[[str | None], None]) -> None:
        self._address = address
        self._peer = peer
        self._on_blocked = on_blocked
        self._awaited: tuple[type[base.Frame], asyncio.Future[Any]] | None = None
        self.wire: Wire | None = None
        self.phase = "greeting"

    async def shake_hands(self, name: str) -> Agreed:
        """From the greeting to the open virtual host. The caller bounds it in time."""
        start = await self._converse(PROTOCOL_HEADER, commands.Connection.Start)
        server = self._checked_server(start)
        self.phase = "login"
        tune = await self._converse(self._start_ok(start, name), commands.Connection.Tune)
        agreed = Agreed(
            server=server,
            frame_max=_lower(tune.frame_max, self._address.frame_max),
            channel_max=_lower(tune.channel_max, 2047),
            heartbeat_s=_lower(tune.heartbeat, self._address.heartbeat_s),
        )
        if agreed.frame_max < FRAME_SIZE_MIN:
            raise malformed(f"a frame_max of {agreed.frame_max}; AMQP needs {FRAME_SIZE_MIN}")
        tune_ok = build(
            commands.Connection.TuneOk,
            channel_max=agreed.channel_max,
            frame_max=agreed.frame_max,
            heartbeat=agreed.heartbeat_s,
        )
        self.phase = "virtual host"
        opening = build(commands.Connection.Open, virtual_host=self._address.vhost)
        await self._converse(encode_method(0, tune_ok) + encode_method(0, opening), commands.Connection.OpenOk)
        self.phase = "open"
        return agreed

    def provoke(self) -> None:
        """The peer has said nothing and its time is nearly up: a web server answers an empty line, and is found out."""
        if self.phase == "greeting" and self.wire is not None and not self.wire.bytes_received:
            self.wire.send((b"\r\n\r\n",), 4)
            self.wire.flush()

    def begin_close(self) -> asyncio.Future[Any]:
        """Tell the broker that this side is done; resolves with its answer."""
        closing = build(commands.Connection.Close, reply_code=200, reply_text="goodbye", class_id=0, method_id=0)
        return self._ask(encode_method(0, closing), commands.Connection.CloseOk)

    def on_frame(self, kind: int, payload: bytes) -> None:
        """A frame of channel 0."""
        if kind != METHOD:
            raise WireError("content on channel 0")
        method = decode_method(payload)
        if isinstance(method, commands.Connection.Close):
            self._on_close(method)
        elif isinstance(method, commands.Connection.Blocked):
            self._on_blocked(method.reason or "no reason given")
        elif isinstance(method, commands.Connection.Unblocked):
            self._on_blocked(None)
        elif self._awaited is not None and isinstance(method, self._awaited[0]):
            (_, waiter), self._awaited = self._awaited, None
            if not waiter.done():
                waiter.set_result(method)
        else:
            raise WireError(f"{method.name} out of turn ({self.phase})")

    def fail(self, error: GroundplaneError) -> None:
        """The connection is over: whoever waits here is told."""
        awaited, self._awaited = self._awaited, None
        if awaited is not None and not awaited[1].done():
            awaited[1].set_exception(error)
            awaited[1].exception()

    async def _converse(self, data: bytes, reply: type[_Method]) -> _Method:
        answer: _Method = await self._ask(data, reply)
        return answer

    def _ask(self, data: bytes, reply: type[base.Frame]) -> asyncio.Future[Any]:
        assert self.wire is not None
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._awaited = (reply, waiter)
        self.wire.send((data,), len(data))
        self.wire.flush()
        return waiter

    def _on_close(self, close: commands.Connection.Close) -> None:
        assert self.wire is not None
        data = encode_method(0, commands.Connection.CloseOk())
        self.wire.send((data,), len(data))
        self.wire.flush()
        self.wire.fail(self._error_of(close), politely=True)

    def _error_of(self, close: commands.Connection.Close) -> GroundplaneError:
        if self.phase == "login" and close.reply_code == 403:
            return PermissionDenied(
                f"queues: {self._address.masked()!r}: the broker refused user {self._address.user!r} and its password "
                f"({close.reply_text!r}); mend them in the URL",
                reason="login_refused",
                details={"user": self._address.user, "reply_code": 403},
            )
        field = f"virtual host {self._address.vhost!r}" if self.phase == "virtual host" else "connection"
        method = (close.class_id or 0, close.method_id or 0)
        return from_reply(field, close.reply_code or 0, close.reply_text, method)

    def _checked_server(self, start: commands.Connection.Start) -> ServerInfo:
        properties: dict[str, Any] = dict(start.server_properties or {})
        abilities = properties.get("capabilities")
        abilities = abilities if isinstance(abilities, dict) else {}
        info = ServerInfo(
            product=str(properties.get("product", "")),
            version=str(properties.get("version", "")),
            cluster=str(properties.get("cluster_name", "")),
            capabilities=frozenset(k for k, v in abilities.items() if v),
        )
        if info.product != "RabbitMQ":
            raise FailedPrecondition(
                f"queues: {self._peer} is {info.product or 'an unnamed product'!r} {info.version}, not RabbitMQ; "
                "quorum queues are needed",
                reason="not_amqp",
            )
        number = re.match(r"(\d+)\.(\d+)", info.version)
        if number is None or (int(number[1]), int(number[2])) < VERSION_MIN:
            least = ".".join(map(str, VERSION_MIN))
            raise FailedPrecondition(
                f"queues: {self._peer} is RabbitMQ {info.version!r}; {least} is the least that works: upgrade it",
                reason="server_too_old",
                details={"version": info.version, "least": least},
            )
        return info

    def _start_ok(self, start: commands.Connection.Start, name: str) -> bytes:
        mechanisms = str(start.mechanisms).split()
        if "PLAIN" not in mechanisms:
            raise PermissionDenied(
                f"queues: {self._peer} offers the logins {mechanisms!r}; PLAIN is needed: allow auth_mechanisms PLAIN",
                reason="login_refused",
            )
        properties: dict[str, Any] = {
            "product": "Groundplane",
            "version": __version__,
            "platform": f"Python {platform.python_version()}",
            "connection_name": name,
            "capabilities": _CAPABILITIES,
        }
        login = commands.Connection.StartOk(properties, "PLAIN", locale="en_US")
        login.response = f"\0{self._address.user}\0{self._address.password.reveal()}"
        return encode_method(0, login)


def _lower(theirs: int | None, ours: int) -> int:
    """The lower of two limits, of which 0 means none."""
    return min(theirs, ours) if theirs else ours
