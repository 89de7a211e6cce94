"""Storing many messages at once: up to 500 under way, each answered by itself, none lost with its acknowledgement."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from groundplane.backends.nats.errors import again, too_late
from groundplane.backends.nats.jetstream import MESSAGE_ID, RETRY_WAIT_S, JetStream, PubAck, read_ack
from groundplane.backends.nats.message import Message, encode_headers
from groundplane.core.errors import Closed, GroundplaneError, InvalidArgument
from groundplane.core.lifecycle import Lifecycle

WINDOW = 500
_FLUSH_S = 5.0


class _Flight:
    """One message on its way."""

    __slots__ = ("ack", "attempts", "error", "head", "late_at", "over_at", "payload", "subject", "token")

    def __init__(self, subject: str, payload: bytes, head: bytes, ack: asyncio.Future[PubAck], over_at: float) -> None:
        self.subject = subject
        self.payload = payload
        self.head = head
        self.ack = ack
        self.over_at = over_at
        self.late_at = over_at
        self.attempts = 0
        self.token = ""
        self.error: GroundplaneError | None = None


class PublishWindow:
    """A window of publishes, each with a message id: what got no answer within `ack_timeout_s`, or lost its connection,
    is sent again, up to 4 times, and stored once within the stream's duplicate window.

    Each `put` ends in an acknowledgement or an error within `timeout_s`. Messages that were sent again may be stored
    behind later ones.
    """

    def __init__(
        self, jetstream: JetStream, *, window: int = WINDOW, ack_timeout_s: float = 2.0, timeout_s: float = 10.0
    ) -> None:
        if window < 1:
            raise InvalidArgument(f"window: {window!r} is less than 1")
        self._link = jetstream.link
        self._window = window
        self._ack_timeout_s = ack_timeout_s
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._flights: dict[_Flight, None] = {}
        self._again: list[_Flight] = []
        self._changed = asyncio.Event()
        self._life = Lifecycle("publish window")
        self._life.spawn(self._watch(), name="acks")
        self.resent = 0

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._flights)

    async def put(
        self, subject: str, payload: bytes, *, message_id: str, headers: Mapping[str, str] | None = None
    ) -> asyncio.Future[PubAck]:
        """Send one; waits only for room in the window. The result is done when it is stored, or cannot be.

        Raises at once what is wrong with the message itself (`invalid_argument`), and `closed`.
        """
        self._life.check_open()
        if not message_id:
            raise InvalidArgument("message_id: is empty; without one a repeated message is stored twice")
        head = encode_headers({**headers, MESSAGE_ID: message_id} if headers else {MESSAGE_ID: message_id})
        await self._link.room()
        while len(self._flights) >= self._window:
            self._changed.clear()
            await self._changed.wait()
        self._life.check_open()
        ack: asyncio.Future[PubAck] = self._loop.create_future()
        flight = _Flight(subject, payload, head, ack, self._loop.time() + self._timeout_s)
        self._flights[flight] = None
        try:
            self._send(flight)
        except BaseException:
            self._flights.pop(flight, None)
            raise
        return ack

    async def flush(self) -> None:
        """Wait until none is under way; each took at most `timeout_s`."""
        while self._flights:
            self._changed.clear()
            await self._changed.wait()

    async def aclose(self) -> None:
        """Finish what is under way, at most 5 s; the rest fails with `closed`. Idempotent."""
        if not self._life.closed:
            with suppress(TimeoutError):  # what is left is told below
                async with asyncio.timeout(_FLUSH_S):
                    await self.flush()
        await self._life.aclose()
        for flight in list(self._flights):
            self._link.give_up(flight.token)
            self._end(flight, Closed("nats: the window was closed; whether the message is stored is unknown"))

    def _send(self, flight: _Flight) -> None:
        """One attempt. Raises what another attempt cannot mend."""
        flight.late_at = self._loop.time() + self._ack_timeout_s
        try:
            flight.token, answer = self._link.call(flight.subject, flight.payload, flight.head)
        except GroundplaneError as error:
            if not error.retryable:
                raise
            flight.error = error
            self._again.append(flight)
            return
        flight.attempts += 1
        answer.add_done_callback(partial(self._answered, flight))

    def _answered(self, flight: _Flight, answer: asyncio.Future[Message]) -> None:
        if flight.ack.done() or answer.cancelled():
            if flight.ack.cancelled():
                self._forget(flight)
            return
        try:
            ack = read_ack(flight.subject, answer.result())
        except GroundplaneError as error:
            flight.error = error
            if error.retryable and flight.attempts <= len(RETRY_WAIT_S):
                self._again.append(flight)
            else:
                self._end(flight, error)
        else:
            self._end(flight, ack)

    def _end(self, flight: _Flight, result: PubAck | GroundplaneError) -> None:
        if not flight.ack.done():
            if isinstance(result, PubAck):
                flight.ack.set_result(result)
            else:
                flight.ack.set_exception(again(result))
        self._forget(flight)

    def _forget(self, flight: _Flight) -> None:
        self._flights.pop(flight, None)
        if not self._changed.is_set():
            self._changed.set()

    async def _watch(self) -> None:
        """Find the late ones, and send again what must be: in their order, once there is a connection."""
        waiting_s = min(RETRY_WAIT_S[0], self._ack_timeout_s / 4)
        while True:
            await asyncio.sleep(waiting_s)
            now = self._loop.time()
            for flight in list(self._flights):
                if flight.late_at > now:
                    break
                if flight not in self._again:
                    self._too_late(flight)
            if self._again:
                self._send_again(now)

    def _too_late(self, flight: _Flight) -> None:
        self._link.give_up(flight.token)
        flight.error = too_late(flight.subject, self._ack_timeout_s)
        if flight.attempts <= len(RETRY_WAIT_S):
            self._again.append(flight)
        else:
            self._end(flight, flight.error)

    def _send_again(self, now: float) -> None:
        waiting, self._again = self._again, []
        for flight in waiting:
            if flight.ack.done():
                self._forget(flight)
            elif now >= flight.over_at:
                self._end(flight, flight.error or too_late(flight.subject, self._timeout_s))
            elif not self._link.is_connected:
                self._again.append(flight)
            else:
                self.resent += 1
                self._flights.pop(flight)
                self._flights[flight] = None  # the order of the dict is that of `late_at`
                try:
                    self._send(flight)
                except GroundplaneError as error:
                    self._end(flight, error)
