"""A connection that comes back: publish, subscribe, request, over whichever server of the address answers."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Mapping
from itertools import count
from types import TracebackType
from typing import Self

import msgspec

from groundplane.backends.nats.address import Address
from groundplane.backends.nats.errors import no_responder, not_connected, too_late
from groundplane.backends.nats.message import Message, encode_headers, is_no_responder
from groundplane.backends.nats.requests import Answer, Collector, Requests
from groundplane.backends.nats.session import ServerInfo, Session
from groundplane.backends.nats.subscription import OnMessage, Subscription
from groundplane.core.errors import (
    Closed,
    GroundplaneError,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from groundplane.core.lifecycle import Lifecycle

CLOSE_S = 1.5
_DROP_S = 0.4
_STEADY_S = 1.0
"""A connection that is lost sooner is followed by a wait: some server takes us and drops us, again and again."""
_SUBJECT = re.compile(r"[^\s\0]+").fullmatch
_REQUESTS_SID = 1


class LinkStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since opening. `error` is why there is no connection now, empty while there is one."""

    connected: bool
    server: str
    version: str
    error: str
    connects: int
    reconnects: int
    attempts: int
    subscriptions: int
    requests: int
    replies_late: int
    callback_failures: int
    published: int
    delivered: int
    bytes_sent: int
    bytes_received: int
    bytes_buffered: int


class Link:
    """A connection to NATS that reconnects by itself and restores its subscriptions.

    While it is not connected `publish` and `request` fail at once with `unavailable` (`not_connected`): nothing is
    replayed later. What was under way when the connection broke fails with `connection_lost`: it may have happened.
    All methods run on the loop that opened it; callbacks are called in it and must not block.
    """

    def __init__(self, address: Address, name: str) -> None:
        self.address = address
        self.name = name
        self.error: GroundplaneError | None = None
        self._loop = asyncio.get_running_loop()
        self._life = Lifecycle(f"nats {name}")
        self._life.on_close(self._hang_up)
        self._session: Session | None = None
        self._restoring: Session | None = None
        self._info = ServerInfo()
        self._lost = asyncio.Event()
        self._connected = asyncio.Event()
        self._connected_at = 0.0
        self._host = -1
        self._sids = count(_REQUESTS_SID + 1)
        self._subscriptions: dict[int, Subscription] = {}
        self._requests = Requests(address.inbox)
        self._listeners: list[Callable[[bool], None]] = []
        self._connects = self._attempts = self._published = self._delivered = self._callback_failures = 0
        self._bytes = [0, 0]

    @classmethod
    async def open(cls, address: Address, *, name: str = "groundplane") -> Link:
        """Connect to the first server that answers; each gets `connect_timeout_s`.

        `unavailable` (`broker_unreachable`, `broker_silent`) where none does, `permission_denied` (`login_refused`),
        `failed_precondition` (`tls_failed`, `server_too_old`, `missing_extra`).
        """
        link = cls(address, name)
        failures: list[GroundplaneError] = []
        for _ in address.hosts:
            try:
                await link._reach_next()
            except Unavailable as error:
                failures.append(error)
            else:
                link._life.spawn(link._supervise(), name="reconnecting")
                return link
        raise _none_of(address, failures)

    # -- life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        state = "closed" if self._life.closed else f"to {self.peer}" if self._session else "not connected"
        return f"<Link {self.name} {state}, {len(self._subscriptions)} subscriptions>"

    @property
    def is_connected(self) -> bool:
        """Whether the server answers: PING found it alive within two intervals."""
        return self._session is not None

    @property
    def closed(self) -> bool:
        """Whether closing has begun."""
        return self._life.closed

    @property
    def info(self) -> ServerInfo:
        """What the server said last, also while there is no connection."""
        return self._info

    @property
    def peer(self) -> str:
        """`host:port` of the server, or of the last one."""
        host, port = self.address.hosts[self._host]
        return f"{host}:{port}"

    @property
    def max_payload(self) -> int:
        """Bytes of headers and payload together."""
        return self._info.max_payload

    def check_open(self) -> None:
        """Raise `closed` once closing has begun."""
        self._life.check_open()

    def on_state(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        """Call `listener(connected)` on each change, soon after it; the result ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    async def connected(self, timeout_s: float) -> None:
        """Wait until there is a connection, at most `timeout_s`: then `unavailable` (`not_connected`)."""
        self._life.check_open()
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError as error:
            raise not_connected(self.address.masked(), self.error) from error
        self._life.check_open()

    async def drain(self, timeout_s: float = 5.0) -> None:
        """End all subscriptions and hand out what the server had sent for them. Publishing goes on.

        Then await your own handlers, then `aclose`: so no reply is lost. Returns at once without a connection.
        """
        for subscription in list(self._subscriptions.values()):
            self._write(b"UNSUB %d\r\n" % subscription.sid)
        session = self._session
        if session is not None:
            await asyncio.wait([session.wire.ping()], timeout=timeout_s)
        self._subscriptions.clear()

    async def aclose(self) -> None:
        """Give the server what was published, then close. Requests under way fail with `closed`. Idempotent, ≤ 3 s."""
        await self._life.aclose()

    async def _hang_up(self) -> None:
        session, self._session = self._session, None
        self._connected.set()  # whoever waits looks, and finds it closed
        self._requests.fail(Closed(f"nats: {self.name} was closed during the call; its outcome is unknown"))
        if session is not None:
            await asyncio.wait([session.wire.ping()], timeout=CLOSE_S)
            session.wire.fail(Closed(f"nats: {self.name} is closed"), politely=True)
            self._count(session)
            await session.wire.gone(_DROP_S)

    # -- publishing

    def publish(
        self, subject: str, payload: bytes = b"", *, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Send a message, at most once. Returns when it is queued for the socket; `flush` tells that the server has it.

        `unavailable` (`not_connected`), `invalid_argument` (a subject with a space, `payload_too_large` where headers
        and payload are over `max_payload`), `resource_exhausted` (`queue_full` over `pending_bytes_max`): nothing sent.
        """
        self.publish_raw(subject, payload, encode_headers(headers) if headers else b"", reply)

    def publish_raw(self, subject: str, payload: bytes, head: bytes = b"", reply: str = "") -> None:
        """`publish` with headers that are encoded already (`encode_headers`)."""
        session = self._session
        if session is None:
            self._life.check_open()
            raise not_connected(self.address.masked(), self.error)
        size = len(head) + len(payload)
        if size > session.info.max_payload:
            raise self._too_large(subject, size, session.info.max_payload)
        if (not subject.isprintable() or " " in subject or not subject) and _SUBJECT(subject) is None:
            raise InvalidArgument(f"subject: {subject!r} has a space or is empty", reason="bad_subject")
        wire = session.wire
        if wire.paused and wire.buffered_bytes + size > self.address.pending_bytes_max:
            raise ResourceExhausted(
                f"nats: {wire.buffered_bytes} bytes wait to be written; send less, or await room()", reason="queue_full"
            )
        to = f"{subject} {reply}" if reply else subject
        if head:
            wire.send(b"%b%b%b\r\n" % (f"HPUB {to} {len(head)} {size}\r\n".encode(), head, payload))
        else:
            wire.send(b"%b%b\r\n" % (f"PUB {to} {size}\r\n".encode(), payload))
        self._published += 1

    @property
    def is_full(self) -> bool:
        """Whether the socket takes no more for now: then `room` waits."""
        return self._session is not None and self._session.wire.paused

    async def room(self) -> None:
        """Wait until the socket takes more, or the connection is over. Returns at once as a rule."""
        session = self._session
        if session is not None and session.wire.paused:
            await session.wire.resumed()

    async def flush(self, timeout_s: float | None = None) -> float:
        """Wait until the server has read all that was sent before; the seconds that took.

        `unavailable` (`connection_lost`, `not_connected`), `deadline_exceeded`. May be cancelled; that changes nothing.
        """
        session = self._session
        if session is None:
            self._life.check_open()
            raise not_connected(self.address.masked(), self.error)
        allowed_s = self.address.request_timeout_s if timeout_s is None else timeout_s
        began = self._loop.time()
        asked = session.wire.ping()
        done, _ = await asyncio.wait([asked], timeout=allowed_s)
        if not done:
            raise too_late("flush", allowed_s)
        if not asked.result():
            self._life.check_open()
            raise Unavailable("nats: the connection broke; what was sent may have arrived", reason="connection_lost")
        return self._loop.time() - began

    # -- subscribing

    def subscribe(self, subject: str, on_message: OnMessage, *, queue: str = "") -> Subscription:
        """Call `on_message` for each message on `subject` (wildcards `*` and `>`), of a `queue` group one member each.

        Without a connection it begins with the next one. A callback that raises is counted
        (`Subscription.failure`), and the next message is delivered all the same.
        """
        self._life.check_open()
        if _SUBJECT(subject) is None or (queue and _SUBJECT(queue) is None):
            raise InvalidArgument(f"subject: {subject!r} (queue {queue!r}) has a space or is empty")
        subscription = Subscription(self, next(self._sids), subject, queue, on_message)
        self._subscriptions[subscription.sid] = subscription
        self._write(subscription.line())
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Hand out no more for it. Idempotent."""
        if self._subscriptions.pop(subscription.sid, None) is not None:
            self._write(b"UNSUB %d\r\n" % subscription.sid)

    async def drain_one(self, subscription: Subscription, timeout_s: float) -> None:
        """End a subscription and hand out what the server had sent for it, within `timeout_s`."""
        session = self._session
        try:
            if subscription.sid in self._subscriptions and session is not None:
                self._write(b"UNSUB %d\r\n" % subscription.sid)
                await asyncio.wait([session.wire.ping()], timeout=timeout_s)
        finally:
            self.unsubscribe(subscription)  # once more: the next connection may have restored it meanwhile

    # -- requesting

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Send a request and wait for its one answer, at most `timeout_s` (default `request_timeout_s`).

        `unavailable`: `no_responder` at once where nobody serves it, `not_connected` (not sent), `connection_lost`;
        `deadline_exceeded`; `invalid_argument` as `publish`.
        """
        allowed_s = self.address.request_timeout_s if timeout_s is None else timeout_s
        token, answer = self.call(subject, payload, encode_headers(headers) if headers else b"", allowed_s)
        try:
            message = await answer
        except BaseException:
            self._requests.forget(token)
            raise
        if message.head and is_no_responder(message):
            raise no_responder(subject)
        return message

    def call(
        self, subject: str, payload: bytes, head: bytes = b"", timeout_s: float | None = None
    ) -> tuple[str, asyncio.Future[Message]]:
        """The half of `request` that sends: the token and the answer to come, for who has many under way.

        A lost connection fails the answer, and so does `timeout_s`; without, the caller watches the time. It ends with
        `give_up(token)`.
        """
        answer: asyncio.Future[Message] = self._loop.create_future()
        return self.call_with(answer, subject, payload, head, timeout_s), answer

    def call_with(
        self, answer: Answer, subject: str, payload: bytes, head: bytes = b"", timeout_s: float | None = None
    ) -> str:
        """`call` with an answer of the caller's own: the token."""
        token, reply = self._requests.begin(answer, subject, timeout_s)
        try:
            self.publish_raw(subject, payload, head, reply)
        except BaseException:
            self._requests.forget(token)
            raise
        return token

    def give_up(self, token: str) -> None:
        """Nobody waits for this answer any more."""
        self._requests.forget(token)

    async def collect(
        self, subject: str, payload: bytes, *, ended: Callable[[Message], bool], timeout_s: float | None = None
    ) -> list[Message]:
        """Send a request and take answers until one is the last; `timeout_s` is from one answer to the next."""
        allowed_s = self.address.request_timeout_s if timeout_s is None else timeout_s
        collector = Collector(ended)
        token, reply = self._requests.begin_collecting(subject, collector)
        try:
            self.publish_raw(subject, payload, b"", reply)
            return await collector.all(subject, allowed_s)
        finally:
            self._requests.forget(token)

    def new_inbox(self) -> str:
        """A subject that nobody else has, for a subscription of one's own."""
        return self._requests.new_inbox()

    def statistics(self) -> LinkStatistics:
        """Counts since opening."""
        session = self._session
        wire = session.wire if session else None
        return LinkStatistics(
            connected=session is not None,
            server=self.peer,
            version=self._info.version,
            error="" if session is not None or self.error is None else self.error.message,
            connects=self._connects,
            reconnects=max(0, self._connects - 1),
            attempts=self._attempts,
            subscriptions=len(self._subscriptions),
            requests=len(self._requests),
            replies_late=self._requests.late,
            callback_failures=self._callback_failures,
            published=self._published,
            delivered=self._delivered,
            bytes_sent=self._bytes[0] + (wire.bytes_sent if wire else 0),
            bytes_received=self._bytes[1] + (wire.bytes_received if wire else 0),
            bytes_buffered=wire.buffered_bytes if wire else 0,
        )

    # -- session.Keeper

    def deliver(self, sid: int, message: Message) -> None:
        """A message came."""
        self._delivered += 1
        if sid == _REQUESTS_SID:
            self._requests.deliver(message)
            return
        subscription = self._subscriptions.get(sid)
        if subscription is None:
            return
        try:
            subscription.on_message(message)
        except Exception as error:  # noqa: BLE001 - one callback's fault must not make the others deaf
            self._callback_failures += 1
            subscription.failure = error

    def on_refused(self, error: GroundplaneError) -> None:
        """The server refuses a subject: whoever asks there, or listens there, is told."""
        subject = error.details.get("subject")
        if not subject:
            return
        if error.details["publish"]:
            self._requests.refuse(subject, error)
            return
        for subscription in self._subscriptions.values():
            if subscription.subject == subject:
                subscription.error = error

    def on_lost(self, session: Session, error: GroundplaneError) -> None:
        """A connection has ended."""
        if session is not self._session:
            return
        self._session = None
        self.error = error
        self._count(session)
        self._connected.clear()
        self._requests.fail(
            Unavailable(
                f"nats: the connection to {session.peer} broke ({error.reason or error.code}); whether the request was "
                "done is unknown",
                reason="connection_lost",
            )
        )
        self._tell(False)
        self._lost.set()

    # -- connecting

    async def _supervise(self) -> None:
        flaps = 0
        while True:
            await self._lost.wait()
            self._lost.clear()
            flaps = flaps + 1 if self._loop.time() - self._connected_at < _STEADY_S else 0
            if not await self._reconnect(flaps):
                return

    async def _reconnect(self, flaps: int) -> bool:
        """Try each server in turn until one is reached; `flaps`: so many connections in a row were lost at once."""
        address = self.address
        for rounds in count(flaps):
            if address.reconnect_rounds is not None and rounds - flaps >= address.reconnect_rounds:
                return False
            if rounds:
                await asyncio.sleep(backoff_s(address, rounds, random.random()))
            for _ in address.hosts:
                try:
                    await self._reach_next()
                except GroundplaneError as error:
                    self.error = error
                else:
                    return True
        raise AssertionError("count() does not end")

    async def _reach_next(self) -> None:
        """Connect to the next server in the row and restore the subscriptions; then it is the connection."""
        self._host = (self._host + 1) % len(self.address.hosts)
        host, port = self.address.hosts[self._host]
        self._attempts += 1
        session = Session(self.address, self.name, f"{host}:{port}", self)
        await session.reach(host, port)
        try:
            self._restoring = session
            session.wire.send(b"SUB %s %d\r\n" % (self._requests.subject.encode(), _REQUESTS_SID))
            for subscription in self._subscriptions.values():
                session.wire.send(subscription.line())
            done, _ = await asyncio.wait([session.wire.ping()], timeout=self.address.connect_timeout_s)
            if not done or session.wire.over:
                raise Unavailable(f"nats: {session.peer} was lost again at once", reason="connection_lost")
        except BaseException:
            session.wire.fail(Closed("nats: it never came up"))
            raise
        finally:
            self._restoring = None
        self._session, self._info, self.error = session, session.info, None
        self._connects += 1
        self._connected_at = self._loop.time()
        self._connected.set()
        self._tell(True)

    def _write(self, line: bytes) -> None:
        session = self._session or self._restoring
        if session is not None:
            session.wire.send(line)

    def _count(self, session: Session) -> None:
        self._bytes[0] += session.wire.bytes_sent
        self._bytes[1] += session.wire.bytes_received

    def _tell(self, connected: bool) -> None:
        for listener in list(self._listeners):
            self._loop.call_soon(listener, connected)

    def _too_large(self, subject: str, size: int, most: int) -> InvalidArgument:
        return InvalidArgument(
            f"payload: {size} bytes with headers for {subject!r} are over the server's limit of {most}; send less, or "
            "raise max_payload on the server",
            reason="payload_too_large",
            details={"bytes": size, "bytes_max": most},
        )


def backoff_s(address: Address, rounds: int, chance: float) -> float:
    """The wait before the `rounds`-th round of reconnecting (from 1), for a `chance` from 0 to 1."""
    wait_s = min(address.reconnect_wait_max_s, address.reconnect_wait_s * 2.0 ** min(rounds - 1, 30))
    return wait_s * (1.0 - address.reconnect_jitter * chance)


def _none_of(address: Address, failures: list[GroundplaneError]) -> GroundplaneError:
    """The error for all servers: that of the only one, or all in a row."""
    if len(failures) == 1:
        return failures[0]
    listed = "; ".join(error.message for error in failures)
    none = Unavailable(
        f"nats: {address.masked()!r}: none of {len(failures)} servers can be used: {listed}",
        reason=failures[-1].reason,
    )
    none.__cause__ = failures[-1]
    return none
