"""Consuming by overlapping requests: the next batch is asked for while the last one is being delivered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec

from groundplane.backends.nats.errors import again
from groundplane.backends.nats.jetstream import JetStream, check_name
from groundplane.backends.nats.message import Message
from groundplane.backends.nats.subscription import Subscription
from groundplane.core.errors import GroundplaneError, InvalidArgument, NotFound
from groundplane.core.lifecycle import Lifecycle

WINDOW, REFILL = 500, 250
HEARTBEAT_S = 1.0
DEAF_S = 2.4
_BACKOFF_S = (0.05, 1.0)
_DRAIN_S = 2.0


class Pull:
    """Deliveries of a pull consumer, at most `window` asked for or held at once, asked for anew at `refill`.

    `on_message(delivery)` is called in the loop; for each, call `release()` when it is settled. Never deaf: it begins
    anew after each reconnect, and when the server was silent for 2.4 heartbeats although something is asked for; a
    consumer that is missing is made again by `make`.
    """

    def __init__(
        self,
        jetstream: JetStream,
        stream: str,
        consumer: str,
        on_message: Callable[[Message], None],
        *,
        window: int = WINDOW,
        refill: int | None = None,
        expires_s: float = 10.0,
        heartbeat_s: float = HEARTBEAT_S,
        make: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        if window < 1 or heartbeat_s * 2 > expires_s:
            raise InvalidArgument(f"window: {window!r} is less than 1, or expires_s {expires_s!r} under two heartbeats")
        self._jetstream, self._link = jetstream, jetstream.link
        self._stream, self._consumer = check_name("stream", stream), check_name("consumer", consumer)
        self._on_message = on_message
        self._window = window
        self._refill = window // 2 if refill is None else refill
        self._heartbeat_s = heartbeat_s
        self._request = {"expires": round(expires_s * 1e9), "idle_heartbeat": round(heartbeat_s * 1e9)}
        self._subject = jetstream.api_subject(f"CONSUMER.MSG.NEXT.{stream}.{consumer}")
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._life = Lifecycle(f"pull {stream}.{consumer}")
        self._subscription: Subscription | None = None
        self._heard_at = self._loop.time()
        self._stopping = False
        self._wake = asyncio.Event()
        self._broken: str = ""
        self.requested = 0
        self.held = 0
        self.restarts = -1
        self.error: GroundplaneError | None = None
        self._forget_listener = self._link.on_state(self._on_state)
        self._life.spawn(self._supervise(), name="flow")

    def __repr__(self) -> str:
        return f"<Pull {self._stream}.{self._consumer} {self.requested} asked for, {self.held} held>"

    @property
    def flowing(self) -> bool:
        """Whether the server was heard of within 2.4 heartbeats, or nothing is asked for as the window is full."""
        if self._stopping or self._subscription is None or not self._link.is_connected:
            return False
        return self.requested == 0 or self._silent_s() < DEAF_S * self._heartbeat_s

    def release(self, count: int = 1) -> None:
        """So many deliveries are settled: there is room for others."""
        self.held -= count
        self._fill()

    async def aclose(self) -> None:
        """Ask for no more; what the server had sent is delivered still. What is held stays the caller's. ≤ 4 s."""
        self._stopping = True
        self._forget_listener()
        await self._life.aclose()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.drain(_DRAIN_S)

    # -- what arrives

    def _on_delivery(self, message: Message) -> None:
        self._heard_at = self._loop.time()
        if message.head and not message.reply.startswith("$JS.ACK.") and message.status:
            self._on_status(message)
            return
        self.requested -= 1
        self.held += 1
        try:
            self._on_message(message)
        finally:
            if self.requested <= self._refill:
                self._fill()

    def _on_status(self, message: Message) -> None:
        status = message.status
        if status == 100:
            return
        if status in (404, 408):  # a request has run out with so many of its batch undelivered
            self.requested = max(0, self.requested - int(message.headers.get("Nats-Pending-Messages", self.requested)))
            self._fill()
            return
        self._restart(f"status {status}")

    def _on_state(self, connected: bool) -> None:
        if connected:
            self._restart("")

    # -- asking

    def _fill(self) -> None:
        room = self._window - self.requested - self.held
        if room <= 0 or self.requested > self._refill or self._subscription is None or self._stopping:
            return
        if self.requested and room < self._window - self._refill:
            return
        try:
            body = msgspec.json.encode({**self._request, "batch": room})
            self._link.publish_raw(self._subject, body, b"", self._subscription.subject)
        except GroundplaneError as error:
            self.error = error  # it begins anew with the next connection
            return
        if not self.requested:
            self._heard_at = self._loop.time()
        self.requested += room

    def _restart(self, why: str) -> None:
        self._broken = why
        if self._subscription is not None:
            self._subscription.unsubscribe()
            self._subscription = None
        self.requested = 0
        self._wake.set()

    def _silent_s(self) -> float:
        return self._loop.time() - self._heard_at

    async def _supervise(self) -> None:
        wait_s = _BACKOFF_S[0]
        self._wake.set()
        while True:
            try:
                async with asyncio.timeout(self._heartbeat_s / 2):
                    await self._wake.wait()
            except TimeoutError:
                if self._link.is_connected and self.requested and self._silent_s() > DEAF_S * self._heartbeat_s:
                    self._restart("silence")
                elif self._subscription is not None:
                    wait_s = _BACKOFF_S[0]
                continue
            self._wake.clear()
            if not self._link.is_connected:
                continue
            try:
                if self._broken:
                    await asyncio.sleep(wait_s * (0.5 + random.random() / 2))
                    wait_s = min(wait_s * 2, _BACKOFF_S[1])
                await self._begin()
            except GroundplaneError as error:
                self.error = error
                self._restart(error.reason or error.code)

    async def _begin(self) -> None:
        """Ask on an inbox of its own, after it is known that the consumer is there."""
        try:
            if self._broken or self.restarts < 0:
                await self._jetstream.consumer_info(self._stream, self._consumer)
        except NotFound as error:
            if self._make is None:
                raise
            self.error = again(error)
            await self._make()
        if self._subscription is not None:
            return
        self._subscription = self._link.subscribe(self._link.new_inbox(), self._on_delivery)
        self._broken, self.error = "", None
        self.restarts += 1
        self._heard_at = self._loop.time()
        self._fill()
