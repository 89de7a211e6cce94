"""A connection to a broker: opened within a deadline, watched by heartbeats, closed with a reason."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Self

from groundplane.backends.amqp.address import Address
from groundplane.backends.amqp.channel import Channel
from groundplane.backends.amqp.control import Agreed, Control, ServerInfo
from groundplane.backends.amqp.errors import again
from groundplane.backends.amqp.tables import RefusedHeader, WireError
from groundplane.backends.amqp.wire import Wire
from groundplane.core.errors import (
    Closed,
    FailedPrecondition,
    GroundplaneError,
    ResourceExhausted,
    Unavailable,
)

CLOSE_S = 1.5
_DROP_S = 0.4
_Listener = Callable[[GroundplaneError], None]


class Connection:
    """One TCP or TLS connection and its channels. It never reconnects: its owner does, and knows what that means.

    Publish and consume on connections of their own: a broker whose alarm is on stops reading from a publisher, acks
    included. A connection has no task; all of it runs in callbacks of the loop it was opened on.
    """

    def __init__(self, address: Address, name: str, peer: str) -> None:
        self.address = address
        self.name = name
        self.peer = peer
        self.error: GroundplaneError | None = None
        self.blocked: str | None = None
        self._loop = asyncio.get_running_loop()
        self._control = Control(address, peer, self._on_blocked)
        self._wire = Wire(self._on_frame, self._on_lost, address.frame_max)
        self._control.wire = self._wire
        self._channels: dict[int, Channel] = {}
        self._agreed: Agreed | None = None
        self._listeners: list[_Listener] = []
        self._blocked_timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Future[None] | None = None
        self._why: GroundplaneError = Closed("connection: it was closed")

    @classmethod
    async def open(cls, address: Address, *, name: str) -> Connection:
        """Connect to the first host that answers, log in, enter the virtual host: ≤ `connect_timeout_s` in all.

        `name` is what the broker's management page shows. Hosts are tried in order; each gets an even share of the
        time that is left. Raises `unavailable` (`broker_unreachable`, `broker_silent`), `permission_denied`
        (`login_refused`, `vhost_refused`), `failed_precondition` (`not_amqp`, `tls_failed`, `server_too_old`), or what
        the broker says. Errors that no other host would mend are raised at once.
        """
        context = address.ssl_context()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + address.connect_timeout_s
        failures: list[GroundplaneError] = []
        for index, (host, port) in enumerate(address.hosts):
            share_s = max(0.05, (deadline - loop.time()) / (len(address.hosts) - index))
            connection = cls(address, name, f"{host}:{port}")
            try:
                await connection._reach(host, port, context, share_s)
                return connection
            except Unavailable as error:
                failures.append(error)
        raise _none_of(address, failures)

    # -- life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        state = "open" if self.error is None else f"closed: {self.error.reason or self.error.code}"
        blocked = ", blocked" if self.blocked else ""
        return f"Connection({self.name!r} to {self.peer}, {state}{blocked}, {len(self._channels)} channels)"

    @property
    def is_open(self) -> bool:
        """True until it breaks or is closed."""
        return self.error is None

    @property
    def server(self) -> ServerInfo:
        """The broker's product, version, cluster name and capabilities."""
        assert self._agreed is not None
        return self._agreed.server

    def on_closed(self, callback: _Listener) -> None:
        """Call it once, in a later turn of the loop, with why the connection ended; soon if it has ended already.

        The listeners of its channels are called before.
        """
        if self.error is not None:
            self._loop.call_soon(callback, self.error)
        else:
            self._listeners.append(callback)

    async def aclose(self, why: GroundplaneError | None = None) -> None:
        """Close it: pending work fails with `why`, `Closed` without one. Idempotent, safe while calls are blocked,
        ≤ 2 s, however the broker fares. Cancelling it drops the socket.
        """
        if self._closing is not None:
            await asyncio.wait([self._closing])
            return
        self._closing = self._loop.create_future()
        self._why = why or self._why
        try:
            if self.error is None:
                await self._say_goodbye()
            await self._wire.gone(_DROP_S)
        finally:
            self._wire.drop()
            self._closing.set_result(None)

    # -- use

    async def channel(self, *, confirms: bool = False, prefetch: int = 0) -> Channel:
        """A new channel: with publisher confirms, with at most `prefetch` unsettled deliveries per consumer (0: no
        limit). ≤ `rpc_timeout_s` for each of up to three requests.
        """
        self._check()
        assert self._agreed is not None
        channel = Channel(
            self,
            self._wire,
            self._free_number(self._agreed.channel_max),
            frame_max=self._agreed.frame_max,
            body_max=self.address.body_max,
            timeout_s=self.address.rpc_timeout_s,
        )
        self._channels[channel.number] = channel
        try:
            await channel.open(confirms=confirms, prefetch=prefetch)
        except BaseException:
            channel.abandon()
            raise
        return channel

    async def drain(self) -> None:
        """Wait until more can be written and the broker takes messages, at most `blocked_timeout_s`."""
        if self.blocked is None and not self._wire.paused:
            self._check()
            return
        try:
            async with asyncio.timeout(self.address.blocked_timeout_s):
                while self.error is None and (self.blocked is not None or self._wire.paused):
                    await self._wire.resumed()
        except TimeoutError as error:
            raise self._stuck() from error
        self._check()

    def statistics(self) -> dict[str, int]:
        """Counts of this connection and the channels it has now."""
        return {
            "channels": len(self._channels),
            "published": sum(channel.published for channel in self._channels.values()),
            "unconfirmed": sum(channel.unconfirmed for channel in self._channels.values()),
            "delivered": sum(channel.delivered for channel in self._channels.values()),
            "bytes_received": self._wire.bytes_received,
            "bytes_sent": self._wire.bytes_sent,
            "bytes_buffered": self._wire.buffered_bytes,
        }

    def forget(self, number: int) -> None:
        """A channel is closed on both sides: its number may be used again."""
        self._channels.pop(number, None)

    # -- opening and closing

    async def _reach(self, host: str, port: int, context: ssl.SSLContext | None, share_s: float) -> None:
        provocation = self._loop.call_later(share_s * 0.9, self._control.provoke)
        try:
            async with asyncio.timeout(share_s):
                await self._loop.create_connection(
                    lambda: self._wire, host, port, ssl=context, server_hostname=host if context else None
                )
                self._agreed = await self._control.shake_hands(self.name)
        except BaseException as error:
            failure = self._opening_error(error, share_s)
            self._wire.fail(failure or Closed("connection: opening it was cancelled"))
            await self._wire.gone(_DROP_S)
            if failure is None or failure is error:
                raise
            raise failure from error
        finally:
            provocation.cancel()
        self._wire.agree(self._agreed.frame_max, self._agreed.heartbeat_s)

    def _opening_error(self, error: BaseException, share_s: float) -> GroundplaneError | None:
        """What a failure to open means; None for what is not ours to judge (cancellation)."""
        where = f"queues: {self.address.masked()!r}: {self.peer}"
        match error:
            case Unavailable(__cause__=RefusedHeader()):  # what was to find out a web server came before its own answer
                return _silent(where, share_s, self._control.phase)
            case Unavailable(reason="malformed_frame") if self._control.phase == "greeting":
                return FailedPrecondition(f"{where} is no AMQP 0-9-1 broker: {error.message}", reason="not_amqp")
            case Unavailable(reason="connection_lost") if isinstance(error.__cause__, ssl.SSLError):
                return _tls_failed(where, error.__cause__)  # TLS 1.3: the peer refuses after the handshake
            case Unavailable(reason="connection_lost"):
                guess = "want a client's certificate (certfile)" if self.address.tls else "need TLS (amqps://)"
                return Unavailable(
                    f"{where} closed the connection during the {self._control.phase}; it may be starting or stopping, "
                    f"or the port may belong to another service or {guess}",
                    reason="broker_unreachable",
                )
            case GroundplaneError():
                return error
            case TimeoutError():
                return _silent(where, share_s, self._control.phase)
            case ssl.SSLError():
                return _tls_failed(where, error)
            case OSError():
                return Unavailable(
                    f"{where} cannot be reached ({error}); start the broker, or mend host and port",
                    reason="broker_unreachable",
                )
        return None

    async def _say_goodbye(self) -> None:
        for channel in list(self._channels.values()):
            channel.fail(again(self._why))
        if self.blocked is None:
            answer = self._control.begin_close()
            await asyncio.wait([answer], timeout=CLOSE_S)
        self._wire.fail(self._why, politely=True)

    def _check(self) -> None:
        if self.error is not None:
            raise again(self.error)
        if self._closing is not None:
            raise again(self._why)

    def _free_number(self, most: int) -> int:
        for number in range(1, most + 1):
            if number not in self._channels:
                return number
        raise ResourceExhausted(f"channel: all {most} of this connection are open; close some", reason="queue_full")

    # -- what arrives

    def _on_frame(self, kind: int, number: int, payload: bytes) -> None:
        if number == 0:
            self._control.on_frame(kind, payload)
            return
        channel = self._channels.get(number)
        if channel is None:
            raise WireError(f"a frame for channel {number}, which is not open")
        channel.on_frame(kind, payload)

    def _on_lost(self, error: GroundplaneError) -> None:
        self.error = error
        if self._blocked_timer is not None:
            self._blocked_timer.cancel()
        for channel in list(self._channels.values()):
            channel.lose(error)
        self._control.fail(error)
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            self._loop.call_soon(listener, error)

    def _on_blocked(self, reason: str | None) -> None:
        self.blocked = reason
        if self._blocked_timer is not None:
            self._blocked_timer.cancel()
            self._blocked_timer = None
        if reason is None:
            self._wire.wake()
        else:
            self._blocked_timer = self._loop.call_later(self.address.blocked_timeout_s, self._give_up_unconfirmed)

    def _give_up_unconfirmed(self) -> None:
        stuck = self._stuck()
        for channel in list(self._channels.values()):
            channel.fail_unconfirmed(stuck)

    def _stuck(self) -> ResourceExhausted:
        waited = f"for {self.address.blocked_timeout_s} s"
        if self.blocked is not None:
            return ResourceExhausted(
                f"broker: it has taken no messages {waited} ({self.blocked!r}: its alarm is on); free its memory or "
                "disk. What is unconfirmed may still be taken later",
                reason="broker_blocked",
            )
        return ResourceExhausted(
            f"broker: it has read nothing {waited}, {self._wire.buffered_bytes} bytes wait; send less, or look at it",
            reason="queue_full",
        )


def _silent(where: str, share_s: float, phase: str) -> Unavailable:
    return Unavailable(
        f"{where} did not answer within {share_s:.1f} s ({phase}); is it frozen, or the network in the way?",
        reason="broker_silent",
    )


def _tls_failed(where: str, error: ssl.SSLError) -> FailedPrecondition:
    return FailedPrecondition(
        f"{where}: TLS failed ({error}); mend cafile, certfile, the host's name or the port, or write amqp://",
        reason="tls_failed",
    )


def _none_of(address: Address, failures: list[GroundplaneError]) -> GroundplaneError:
    """The error for all hosts: that of the only one, or all in a row."""
    if len(failures) == 1:
        return failures[0]
    listed = "; ".join(error.message for error in failures)
    none = Unavailable(
        f"queues: {address.masked()!r}: none of {len(failures)} hosts can be used: {listed}",
        reason=failures[-1].reason,
    )
    none.__cause__ = failures[-1]
    return none
