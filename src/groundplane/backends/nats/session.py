"""One connection to one server: reached within a deadline, logged in, and told of its end once."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Protocol

import msgspec

from groundplane import __version__
from groundplane.backends.nats.address import Address
from groundplane.backends.nats.credentials import login_with_creds, login_with_nkey
from groundplane.backends.nats.errors import again, from_refusal
from groundplane.backends.nats.message import Message
from groundplane.backends.nats.wire import Wire
from groundplane.core.errors import Closed, FailedPrecondition, GroundplaneError, Internal, Unavailable

_DROP_S = 0.4


class ServerInfo(msgspec.Struct, frozen=True):
    """What a server says of itself (INFO). `max_payload` bounds headers and payload together, in bytes."""

    server_id: str = ""
    server_name: str = ""
    version: str = ""
    cluster: str = ""
    max_payload: int = 1024 * 1024
    headers: bool = False
    jetstream: bool = False
    tls_required: bool = False
    tls_available: bool = False
    ldm: bool = False
    nonce: str = ""
    client_id: int = 0


class Keeper(Protocol):
    """What is told of a session once it is up."""

    def deliver(self, sid: int, message: Message) -> None:
        """A message for a subscription."""

    def on_refused(self, error: GroundplaneError) -> None:
        """The server refused a subject (`access_refused`), or what follows ends the connection."""

    def on_lost(self, session: Session, error: GroundplaneError) -> None:
        """It has ended. Also told of a session that never came up."""


class Session:
    """A wire and what was agreed on it."""

    def __init__(self, address: Address, name: str, peer: str, keeper: Keeper) -> None:
        self.peer = peer
        self.info = ServerInfo()
        self._address = address
        self._name = name
        self._keeper = keeper
        self._loop = asyncio.get_running_loop()
        self._greeting: asyncio.Future[None] = self._loop.create_future()
        self._refusal: GroundplaneError | None = None
        self._phase = "connecting"
        self.deliver = keeper.deliver
        self.wire = Wire(self)

    async def reach(self, host: str, port: int) -> None:
        """Connect, agree on TLS, log in, within `connect_timeout_s`. On failure nothing is left open.

        `unavailable` where another server, or a later try, may do; else `permission_denied` or `failed_precondition`.
        """
        try:
            async with asyncio.timeout(self._address.connect_timeout_s):
                await self._connect(host, port)
                await self._log_in()
        except BaseException as error:
            failure = self._opening_error(error)
            self.wire.fail(failure or Closed("nats: opening was cancelled"))
            await self.wire.gone(_DROP_S)
            if failure is None or failure is error:
                raise
            raise failure from error
        self._phase = "up"
        self.wire.watch(self._address.ping_interval_s)

    # -- wire.Owner

    def on_info(self, document: bytes) -> None:
        """INFO."""
        try:
            self.info = msgspec.json.decode(document, type=ServerInfo)
        except msgspec.DecodeError as error:
            self.wire.fail(Unavailable(f"nats: the peer's INFO cannot be read ({error})", reason="malformed_frame"))
            return
        if not self._greeting.done():
            self._greeting.set_result(None)

    def on_refusal(self, words: str) -> None:
        """-ERR: an answer to the login, a subject that is forbidden, or the last words of a connection."""
        error = from_refusal(words)
        if error.reason == "access_refused" and self._phase == "up":
            self._keeper.on_refused(error)
        else:
            self._refusal = error
            if self._phase == "up":
                self._keeper.on_refused(error)

    def on_lost(self, wire: Wire, error: GroundplaneError) -> None:
        """The wire has ended: tell why, the server's last words before the socket's."""
        if not self._greeting.done():
            self._greeting.set_result(None)
        self._keeper.on_lost(self, again(self._refusal) if self._refusal is not None else error)

    # -- opening

    async def _connect(self, host: str, port: int) -> None:
        address = self._address
        context = address.ssl_context() if address.tls_first else None
        await self._loop.create_connection(
            lambda: self.wire, host, port, ssl=context, server_hostname=host if context else None
        )
        self._phase = "greeting"
        await self._greeting
        self._check_alive()
        if address.tls_first or not (address.tls or self.info.tls_required):
            return
        if not (self.info.tls_required or self.info.tls_available):
            raise FailedPrecondition(
                f"nats: {self.peer} offers no TLS; configure it on the server, or write nats://", reason="tls_failed"
            )
        self._phase = "TLS"
        assert self.wire.transport is not None
        secured = await self._loop.start_tls(
            self.wire.transport, self.wire, address.ssl_context(), server_hostname=host
        )
        assert secured is not None
        self.wire.transport = secured

    async def _log_in(self) -> None:
        self._phase = "login"
        if not self.info.headers:
            raise FailedPrecondition(f"nats: {self.peer} has no headers; use NATS 2.10+", reason="server_too_old")
        self.wire.send(b"CONNECT " + msgspec.json.encode(self._login()) + b"\r\n")
        if not await self.wire.ping():
            self._check_alive()

    def _login(self) -> dict[str, Any]:
        address, nonce = self._address, self.info.nonce
        words: dict[str, Any] = {
            "verbose": False, "pedantic": False, "echo": True, "headers": True, "no_responders": True, "protocol": 1,
            "lang": "groundplane", "version": __version__, "name": self._name, "tls_required": address.tls,
        }  # fmt: skip
        if address.creds:
            words.update(login_with_creds(address.creds, nonce))
        elif address.nkey:
            words.update(login_with_nkey(address.nkey, nonce))
        elif address.token.reveal():
            words["auth_token"] = address.token.reveal()
        elif address.user:
            words.update({"user": address.user, "pass": address.password.reveal()})
        return words

    def _check_alive(self) -> None:
        if self._refusal is not None:
            raise again(self._refusal)
        if self.wire.over:
            raise Unavailable(
                f"nats: {self.peer} closed the connection during the {self._phase}; it may be starting or stopping, or "
                "the port belongs to another service",
                reason="broker_unreachable",
            )

    def _opening_error(self, error: BaseException) -> GroundplaneError | None:
        """What a failure to open means; None for what is not ours to judge (cancellation)."""
        where = f"nats: {self._address.masked()!r}: {self.peer}"
        match error:
            case GroundplaneError():
                return error
            case TimeoutError():
                return Unavailable(
                    f"{where} did not answer within {self._address.connect_timeout_s:g} s ({self._phase}); is it "
                    "frozen, or the network in the way, or the port that of another service?",
                    reason="broker_silent",
                )
            case ssl.SSLError():
                return FailedPrecondition(
                    f"{where}: TLS failed ({error}); mend cafile, certfile, the host's name or the port",
                    reason="tls_failed",
                )
            case OSError():
                return Unavailable(
                    f"{where} cannot be reached ({error}); start the server, or mend host and port",
                    reason="broker_unreachable",
                )
            case Exception():
                return Internal(f"{where}: opening failed with {error!r}")
        return None
