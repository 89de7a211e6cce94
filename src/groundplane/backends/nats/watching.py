"""Following the last message of each subject of a stream, without a gap and never deaf.

An ephemeral push consumer with flow control and a heartbeat. It is taken for deaf after a reconnect, when no frame came
for 1.2 s, when its sequence has a gap, when a heartbeat knows of deliveries that did not arrive, or when its reader let
the server wait so long that removals may have come and gone. Then it is built anew from the last message of each
subject and compared with the subjects that were known: one that is absent is gone. In a cluster the leader is asked
about each of these: the consumer may lie on a replica that is behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import msgspec

from groundplane.backends.nats.config import ConsumerConfig
from groundplane.backends.nats.jetstream import JetStream, Stored
from groundplane.backends.nats.message import Message, place_of
from groundplane.backends.nats.subscription import Subscription
from groundplane.core.errors import GroundplaneError
from groundplane.core.lifecycle import Lifecycle

HEARTBEAT_S = 0.5
DEAF_S = 1.2
_INACTIVE_S = 5.0
_BACKOFF_S = (0.05, 1.0)


class Changed(msgspec.Struct, frozen=True):
    """A message was stored; it may be one that says that its subject is gone."""

    message: Stored


class Gone(msgspec.Struct, frozen=True):
    """A subject has no message any more; which one removed it is not known. `seq`: the last one seen."""

    subject: str
    seq: int


class Synced(msgspec.Struct, frozen=True):
    """What was there at the beginning has been told. Once."""


Event = Changed | Gone | Synced


class Watcher:
    """`async with Watcher(jetstream, stream, ["a.>"], is_gone=…) as watcher: async for event in watcher: …`

    First the last message of each subject, then `Synced`, then each that is stored. After an interruption changes of
    one subject may have become one. Messages up to the sequence `after` are not told. `is_gone(message)` says
    which ones remove their subject, and such a message stays for `removals_kept_s` at least. A slow reader slows the
    server down, not memory.
    """

    def __init__(
        self,
        jetstream: JetStream,
        stream: str,
        subjects: Sequence[str],
        *,
        is_gone: Callable[[Stored], bool] = lambda _: False,
        after: int = 0,
        headers_only: bool = False,
        heartbeat_s: float = HEARTBEAT_S,
        removals_kept_s: float = float("inf"),
    ) -> None:
        self._jetstream, self._link = jetstream, jetstream.link
        self._stream = stream
        self._subjects = tuple(subjects)
        self._is_gone = is_gone
        self._headers_only = headers_only
        self._heartbeat_s = heartbeat_s
        self._deaf_s = max(DEAF_S, 2.4 * heartbeat_s)
        self._loop = asyncio.get_running_loop()
        self._life = Lifecycle(f"watch {stream}")
        self._events: deque[Event | str] = deque()
        self._arrived = asyncio.Event()
        self._deaf = asyncio.Event()
        self._asked, self._asked_at = "", 0.0
        self._patience_s = removals_kept_s / 2
        self._subscription: Subscription | None = None
        self._consumer = ""
        self._consumer_seq = 0
        self._created = ""
        self._seq = after
        self._known: set[str] = set()
        self._seen: set[str] | None = None
        self._absent: set[str] = set()
        self._heard_at = self._loop.time()
        self._forget_listener: Callable[[], None] = lambda: None
        self.synced = False
        self.rebuilt = 0
        self.error: GroundplaneError | None = None

    def __repr__(self) -> str:
        return f"<Watcher {self._stream} {' '.join(self._subjects)} at {self._seq}, rebuilt {self.rebuilt} times>"

    async def __aenter__(self) -> Self:
        """Begin. Raises what the first building raises (`not_found`, `unavailable`); later ones are tried for ever."""
        self._forget_listener = self._link.on_state(self._on_state)
        try:
            await self._build()
        except BaseException:
            await self.aclose()
            raise
        self._life.spawn(self._supervise(), name="hearing")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; the iteration ends when the watcher or its link is closed. For one reader."""
        while True:
            while self._events:
                event = self._events.popleft()
                if not isinstance(event, str):
                    return event
                if event == self._asked and self._loop.time() - self._asked_at > self._patience_s:
                    self._asked = ""
                    self._go_deaf()  # what was removed while the server waited may be forgotten by now
                else:
                    self._answer(event)
            if self._life.closed or self._link.closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()

    @property
    def hearing(self) -> bool:
        """Whether there is a connection, and the server was heard of lately: what is stored is told."""
        if self._subscription is None or not self._link.is_connected:
            return False
        return self._loop.time() - self._heard_at < self._deaf_s

    async def aclose(self) -> None:
        """End it; a blocked reader is told. Idempotent."""
        self._forget_listener()
        await self._life.aclose()
        self._drop()
        self._arrived.set()

    # -- what arrives

    def _on_frame(self, message: Message) -> None:
        self._heard_at = self._loop.time()
        if not message.reply.startswith("$JS.ACK."):
            self._on_control(message)
            return
        place = place_of(message.reply)
        if place.consumer_seq != self._consumer_seq + 1:
            self._go_deaf()
            return
        self._consumer_seq = place.consumer_seq
        headers = message.headers
        self._take(Stored(message.subject, place.stream_seq, place.time_ns, message.payload, headers))
        if place.pending == 0:
            self._complete()

    def _on_control(self, message: Message) -> None:
        if message.status != 100:
            self._go_deaf()
            return
        asked = message.reply or message.headers.get("Nats-Consumer-Stalled", "")
        if asked and asked != self._asked:  # while a reader is slow, each heartbeat asks again
            if self._events:
                self._asked, self._asked_at = asked, self._heard_at
                self._tell(asked)  # answered when the reader has come so far
            else:
                self._answer(asked)
        last = message.headers.get("Nats-Last-Consumer")
        if last is not None and int(last) != self._consumer_seq:
            self._go_deaf()

    def _take(self, message: Stored) -> None:
        self._absent.discard(message.subject)
        if self._is_gone(message):
            self._known.discard(message.subject)
        else:
            self._known.add(message.subject)
            if self._seen is not None:
                self._seen.add(message.subject)
        if message.seq > self._seq:
            self._seq = message.seq
            self._tell(Changed(message))

    def _complete(self) -> None:
        """All that was there when the consumer was built has come: what is known and was not among it is gone."""
        if self._seen is not None:
            absent, self._seen = self._known - self._seen, None
            if absent and self._link.info.cluster:
                self._absent = absent
                self._life.spawn(self._look_for(sorted(absent)), name="absent")
            else:
                self._lose(absent)
        if not self.synced:
            self.synced = True
            self._tell(Synced())

    async def _look_for(self, subjects: list[str]) -> None:
        """Ask the leader about those that the consumer did not tell; what it tells meanwhile is there."""
        try:
            for subject in subjects:
                found = await self._jetstream.get_last(self._stream, subject)
                if subject in self._absent and (found is None or self._is_gone(found)):
                    self._lose({subject})
        except GroundplaneError as error:
            self.error = error
            self._go_deaf()

    def _lose(self, subjects: set[str]) -> None:
        self._known -= subjects
        for subject in sorted(subjects):
            self._tell(Gone(subject, self._seq))

    def _tell(self, event: Event | str) -> None:
        self._events.append(event)
        self._arrived.set()

    def _answer(self, subject: str) -> None:
        self._asked = ""
        with contextlib.suppress(GroundplaneError):  # without a connection there is no consumer to answer either
            self._link.publish_raw(subject, b"")

    # -- hearing

    def _on_state(self, connected: bool) -> None:
        if connected:
            self._go_deaf()

    def _go_deaf(self) -> None:
        self._drop()
        self._deaf.set()

    def _drop(self) -> None:
        if self._subscription is not None:
            self._subscription.unsubscribe()
            self._subscription = None
            with contextlib.suppress(GroundplaneError):  # it goes by itself without interest
                what = f"CONSUMER.DELETE.{self._stream}.{self._consumer}"
                self._link.publish_raw(self._jetstream.api_subject(what), b"", b"", self._link.new_inbox())

    async def _supervise(self) -> None:
        wait_s = 0.0
        while True:
            try:
                async with asyncio.timeout(self._heartbeat_s / 2):
                    await self._deaf.wait()
            except TimeoutError:
                if self._link.closed:
                    self._arrived.set()  # a blocked reader is told
                    return
                if self._link.is_connected and not self.hearing:
                    self._go_deaf()
                elif self.hearing:
                    wait_s = 0.0
                continue
            self._deaf.clear()
            if not self._link.is_connected:
                continue
            try:
                await asyncio.sleep(wait_s * (0.5 + random.random() / 2))
                wait_s = min(max(wait_s * 2, _BACKOFF_S[0]), _BACKOFF_S[1])
                await self._build()
                self.rebuilt += 1
            except GroundplaneError as error:
                self.error = error
                self._go_deaf()

    async def _build(self) -> None:
        self._drop()
        info = await self._jetstream.stream_info(self._stream)
        if info.state.last_seq < self._seq or (self._created and info.created != self._created):
            self._seq = 0  # the stream was made anew, and counts from the beginning
        self._created = info.created
        self._absent = set()
        self._seen, self._consumer_seq, self._consumer = set(), 0, f"w{secrets.token_hex(10)}"
        inbox = self._link.new_inbox()
        self._subscription = subscription = self._link.subscribe(inbox, self._on_frame)
        self._heard_at = self._loop.time()
        made = await self._jetstream.create_consumer(self._stream, self._config(inbox), action="create")
        if self._subscription is subscription:
            self._heard_at = self._loop.time()
            self.error = None
            if made.num_pending == 0 and made.delivered.get("consumer_seq", 0) == 0 and self._seen is not None:
                self._complete()

    def _config(self, inbox: str) -> ConsumerConfig:
        return ConsumerConfig(
            name=self._consumer,
            deliver_subject=inbox,
            deliver_policy="last_per_subject",
            ack_policy="none",
            filter_subjects=self._subjects,
            idle_heartbeat_s=self._heartbeat_s,
            flow_control=True,
            headers_only=self._headers_only,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold_s=_INACTIVE_S,
        )
