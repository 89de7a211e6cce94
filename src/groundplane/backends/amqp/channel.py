"""One channel: requests with answers, messages out with confirms, messages in with settlements.

Everything here runs on the loop of its connection. What is synchronous is buffered and written at the end of the turn.
A channel that the broker closed stays closed: nothing is sent on it, each call raises its `error`; open another one.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from groundplane.backends.amqp import methods
from groundplane.backends.amqp.confirms import Confirms, Many, Message, One, Waiter
from groundplane.backends.amqp.content import (
    Assembly,
    Delivery,
    Returned,
    read_confirm,
    read_deliver,
    read_get_ok,
    read_return,
)
from groundplane.backends.amqp.errors import afterwards, again, from_reply, in_doubt
from groundplane.backends.amqp.frames import (
    ACK,
    CONTENT_HEADER,
    METHOD,
    NACK,
    OVERHEAD,
    REJECT,
    content_frames,
    publish_method,
    settle_method,
)
from groundplane.backends.amqp.methods import base, build, commands, decode_method, encode_method, method_index
from groundplane.backends.amqp.tables import EMPTY, WireError
from groundplane.backends.amqp.topology import Topology
from groundplane.backends.amqp.wire import Wire
from groundplane.core.errors import (
    Closed,
    DeadlineExceeded,
    GroundplaneError,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)

CLOSE_S = 1.5
_ROUTES_MAX = 1024
_ENDING_REMEMBERED = 256
_Listener = Callable[[GroundplaneError], None]


class _Consumer(NamedTuple):
    on_delivery: Callable[[Delivery], None]
    on_cancel: _Listener | None


class Host(Protocol):
    """What a channel needs of its connection."""

    blocked: str | None

    def forget(self, number: int) -> None:
        """The number may be used again."""
        ...

    async def drain(self) -> None:
        """Wait until publishing makes sense."""
        ...


class Channel(Topology):
    """See the module. Opened by `Connection.channel`, closed with `aclose` or with its connection.

    The deliveries of a channel are settled on it alone, and return to their queues when it closes.
    """

    def __init__(self, host: Host, wire: Wire, number: int, *, frame_max: int, body_max: int, timeout_s: float) -> None:
        self._host = host
        self._wire = wire
        self._frame_max = frame_max
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._assembly = Assembly(body_max)
        self._replies: deque[tuple[base.Frame, tuple[type[base.Frame], ...], asyncio.Future[Any]]] = deque()
        self._consumers: dict[str, _Consumer] = {}
        self._ending: dict[str, _Consumer] = {}
        self._confirms: Confirms | None = None
        self._routes: dict[tuple[str, str, bool], bytes] = {}
        self._listeners: list[_Listener] = []
        self._closing: asyncio.Future[None] | None = None
        self.number = number
        self.error: GroundplaneError | None = None
        self.delivered = 0
        self.published = 0

    def __repr__(self) -> str:
        state = "open" if self.error is None else f"closed: {self.error.reason or self.error.code}"
        return f"Channel({self.number}, {state}, {len(self._consumers)} consumers, {self.unconfirmed} unconfirmed)"

    # -- life

    @property
    def is_open(self) -> bool:
        """True while calls are sent."""
        return self.error is None

    @property
    def unconfirmed(self) -> int:
        """Published messages that the broker has not answered yet."""
        return len(self._confirms) if self._confirms is not None else 0

    @property
    def confirms(self) -> Confirms | None:
        """The counts of what was published with confirms; None on a channel without."""
        return self._confirms

    def on_closed(self, callback: _Listener) -> None:
        """Call it once, in a later turn of the loop, with why the channel closed; soon if it is closed already."""
        if self.error is not None:
            self._loop.call_soon(callback, self.error)
        else:
            self._listeners.append(callback)

    async def open(self, *, confirms: bool, prefetch: int) -> None:
        """The first requests of a channel; `Connection.channel` makes them."""
        await self.request(commands.Channel.Open(), commands.Channel.OpenOk)
        if prefetch:
            await self.qos(prefetch)
        if confirms:
            await self.request(commands.Confirm.Select(), commands.Confirm.SelectOk)
            self._confirms = Confirms()

    async def aclose(self) -> None:
        """Close it: what is unconfirmed fails with `Closed`, what is unsettled returns. Idempotent, ≤ 1.5 s."""
        if self.error is None:
            self._close(Closed("channel: it was closed"))
        if self._closing is not None and not self._closing.done() and self._host.blocked is None:
            await asyncio.wait([self._closing], timeout=CLOSE_S)

    def fail(self, error: GroundplaneError, blamed: tuple[int, int] | None = None) -> None:
        """It is closed: tell everybody who waits. Of several the one whose method is `blamed` gets the error."""
        if self.error is not None:
            return
        self.error = error
        self._assembly.abandon()
        replies, self._replies = self._replies, deque()
        for position, (asked, _, waiter) in enumerate(replies):
            guilty = blamed is None or (position == 0 and blamed == (asked.index >> 16, asked.frame_id))
            if not waiter.done():
                waiter.set_exception(again(error) if guilty else in_doubt(asked.name, error))
                waiter.exception()  # its owner may be gone
        if self._confirms is not None:
            self._confirms.fail(error, blamed)
        self._consumers.clear()
        self._ending.clear()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            self._loop.call_soon(listener, error)

    def abandon(self) -> None:
        """Close it without waiting, whatever is under way on it."""
        if self.error is None:
            self._close(Closed("channel: it was given up"))

    def lose(self, error: GroundplaneError) -> None:
        """The whole connection is over."""
        self.fail(error)
        self._closed()

    def fail_unconfirmed(self, error: GroundplaneError) -> None:
        """Give up waiting for the broker's confirms; they may come late, and are passed over then."""
        if self._confirms is not None:
            self._confirms.fail(error)

    # -- requests

    async def request(self, method: base.Frame, *replies: type[base.Frame]) -> Any:
        """Send a method and wait for its answer, at most `rpc_timeout_s`.

        `deadline_exceeded` (reason `broker_slow`) closes the channel, as later answers could no longer be told apart.
        """
        data = encode_method(self.number, method)
        self._check()
        waiter: asyncio.Future[Any] = self._loop.create_future()
        self._replies.append((method, replies, waiter))
        self._wire.send((data,), len(data))
        try:
            done, _ = await asyncio.wait([waiter], timeout=self._timeout_s)
        except asyncio.CancelledError:
            if not waiter.cancel() and waiter.exception() is None:
                self._give_back(waiter.result())
            raise
        if done:
            return waiter.result()
        slow = DeadlineExceeded(
            f"{method.name}: no answer within {self._timeout_s} s; look at the broker's load, and whether the queue "
            "has a leader",
            reason="broker_slow",
        )
        self._close(slow)
        raise slow

    async def get(self, queue: str) -> Delivery | None:
        """The next message, if there is one; it is to be settled. For tools: `consume` is for work."""
        method = build(commands.Basic.Get, queue=queue)
        answer = await self.request(method, commands.Basic.GetOk, commands.Basic.GetEmpty)
        return answer if isinstance(answer, Delivery) else None

    async def consume(
        self,
        queue: str,
        on_delivery: Callable[[Delivery], None],
        *,
        on_cancel: _Listener | None = None,
        arguments: Mapping[str, Any] | None = None,
        exclusive: bool = False,
        no_ack: bool = False,
    ) -> str:
        """Start a consumer; its tag. `on_delivery` is called on the loop, must be quick and must not raise.

        `on_cancel` is told when the broker ends it (reason `consumer_cancelled`: the queue was deleted, its leader
        left). When the channel closes, `on_closed` tells.
        """
        tag = f"groundplane-{uuid.uuid4().hex[:12]}"
        method = build(
            commands.Basic.Consume,
            queue=queue,
            consumer_tag=tag,
            no_ack=no_ack,
            exclusive=exclusive,
            arguments=dict(arguments or {}),
        )
        self._check()
        self._consumers[tag] = _Consumer(on_delivery, on_cancel)
        try:
            await self.request(method, commands.Basic.ConsumeOk)
        except asyncio.CancelledError:
            if self.error is None:  # it may have started: what it gets goes back
                self._consumers[tag] = _Consumer(_pass_over if no_ack else self._give_back, None)
                self._tell(commands.Basic.Cancel(consumer_tag=tag, nowait=True))
            raise
        return tag

    async def cancel(self, tag: str) -> None:
        """End a consumer; what was delivered stays unsettled. What the broker had pushed before still comes, also after
        this returns: RabbitMQ answers before it passes on what waits in its channel. Another request on this channel
        flushes that.
        """
        await self.request(build(commands.Basic.Cancel, consumer_tag=tag), commands.Basic.CancelOk)
        self._end_consumer(tag)

    def _end_consumer(self, tag: str) -> _Consumer | None:
        consumer = self._consumers.pop(tag, None)
        if consumer is not None:
            self._ending[tag] = consumer
            while len(self._ending) > _ENDING_REMEMBERED:
                del self._ending[next(iter(self._ending))]
        return consumer

    # -- settling: synchronous, not confirmed by the broker

    def ack(self, tag: int, multiple: bool = False) -> None:
        """The work of this delivery is done (`multiple`: of all up to it)."""
        self._settle(ACK, tag, 1 if multiple else 0)

    def nack(self, tag: int, multiple: bool = False, requeue: bool = True) -> None:
        """Give it back, or, without `requeue`, to where the queue sends its dead."""
        self._settle(NACK, tag, (1 if multiple else 0) | (2 if requeue else 0))

    def reject(self, tag: int, requeue: bool = False) -> None:
        """As `nack`, for one."""
        self._settle(REJECT, tag, 1 if requeue else 0)

    # -- publishing

    def publish(
        self, exchange: str, routing_key: str, body: bytes, properties: bytes = EMPTY, mandatory: bool = True
    ) -> asyncio.Future[None]:
        """Send a message. The future is done when the broker has it safe; without confirms it is done at once.

        It fails with `not_found` (reason `queue_not_found`: it came back, nothing is bound there),
        `resource_exhausted` (`message_refused`; `broker_blocked` after `blocked_timeout_s`) or `unavailable`
        (`connection_lost`: nobody knows). Giving the future up is harmless. Raises at once, and sends nothing, when
        the channel is closed, the broker is blocked, too much is unconfirmed or unwritten (`queue_full`), or the
        properties do not fit into a frame (`payload_too_large`).
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self._check_publishing(1)
        self._publish(One(future), 0, Message(exchange, routing_key, body, properties), mandatory)
        return future

    def publish_batch(
        self, messages: Sequence[Message], mandatory: bool = True
    ) -> asyncio.Future[list[GroundplaneError | None]]:
        """Send many; one future with an outcome for each, in order: None, or the error as of `publish`.

        Raises at once as `publish` does, before anything of the batch is sent.
        """
        future: asyncio.Future[list[GroundplaneError | None]] = self._loop.create_future()
        self._check_publishing(len(messages))
        for message in messages:
            self._route(message, mandatory)
        if not messages:
            future.set_result([])
        waiter = Many(future, len(messages))
        for index, message in enumerate(messages):
            self._publish(waiter, index, message, mandatory)
        return future

    async def drain(self) -> None:
        """Wait until more can be written and the broker takes messages, at most `blocked_timeout_s`.

        Raises `resource_exhausted` (`broker_blocked`, `queue_full`) then, and the channel's error when it is closed.
        """
        self._check()
        await self._host.drain()
        self._check()

    def _publish(self, waiter: Waiter, index: int, message: Message, mandatory: bool) -> None:
        parts = content_frames(self.number, message.properties, message.body, self._frame_max)
        parts.insert(0, self._route(message, mandatory))
        self.published += 1
        if self._confirms is None:
            waiter.settle(index, None)
        else:
            self._confirms.add(waiter, index, message)
        self._wire.send(parts, len(message.body) + 100)

    def _route(self, message: Message, mandatory: bool) -> bytes:
        """The first frame, remembered: there are few routes. Checks what may be wrong with the message."""
        if len(message.properties) > self._frame_max - CONTENT_HEADER - OVERHEAD:
            raise InvalidArgument(
                f"headers: {len(message.properties)} bytes of properties do not fit into a frame of "
                f"{self._frame_max}; put the data into the body",
                reason="payload_too_large",
            )
        key = (message.exchange, message.routing_key, mandatory)
        found = self._routes.get(key)
        if found is None:
            if len(self._routes) >= _ROUTES_MAX:
                self._routes.clear()
            found = publish_method(self.number, message.exchange, message.routing_key, mandatory)
            self._routes[key] = found
        return found

    def _check_publishing(self, count: int) -> None:
        self._check()
        if self._host.blocked is not None:
            raise ResourceExhausted(
                f"broker: it takes no messages now ({self._host.blocked!r}); nothing was sent, try again later",
                reason="broker_blocked",
            )
        if self._wire.full or not (self._confirms is None or self._confirms.has_room(count)):
            raise ResourceExhausted(
                f"broker: {self.unconfirmed} messages are unconfirmed, {self._wire.buffered_bytes} bytes unwritten; "
                "wait for confirms before sending more",
                reason="queue_full",
            )

    # -- frames that arrive

    def on_frame(self, kind: int, payload: bytes) -> None:
        """A frame of this channel. `WireError` when it is out of turn."""
        if self.error is not None:
            self._on_frame_closed(kind, payload)
            return
        if kind != METHOD:
            whole = self._assembly.add(kind, payload)
            if whole is not None:
                self._on_content(whole)
            return
        if self._assembly.busy:
            raise WireError("a method in the middle of a message")
        index = method_index(payload)
        if index == methods.DELIVER:
            self._assembly.begin(read_deliver(payload))
        elif index == methods.ACK:
            tag, bits = read_confirm(payload)
            self._publisher("Basic.Ack").acknowledge(tag, bits & 1 == 1)
        elif index == methods.NACK:
            tag, bits = read_confirm(payload)
            self._publisher("Basic.Nack").refuse(tag, bits & 1 == 1)
        elif index == methods.RETURN:
            self._assembly.begin(read_return(payload))
        elif index == methods.GET_OK:
            self._assembly.begin(read_get_ok(payload))
        else:
            self._on_method(decode_method(payload))

    def _on_content(self, whole: Delivery | Returned) -> None:
        if isinstance(whole, Returned):
            if self._confirms is not None:
                self._confirms.give_back(whole)
        elif not whole.consumer:
            self._answer(whole, commands.Basic.GetOk)
        else:
            self.delivered += 1
            consumer = self._consumers.get(whole.consumer) or self._ending.get(whole.consumer)
            if consumer is None:
                raise WireError(f"a message for the unknown consumer {whole.consumer!r}")
            consumer.on_delivery(whole)

    def _on_method(self, method: base.Frame) -> None:
        if isinstance(method, commands.Channel.Close):
            self._tell(commands.Channel.CloseOk())
            where = (method.class_id or 0, method.method_id or 0)
            self.fail(from_reply("channel", method.reply_code or 0, method.reply_text, where), where)
            self._closed()
        elif isinstance(method, commands.Channel.Flow):
            self._tell(commands.Channel.FlowOk(method.active))
        elif isinstance(method, commands.Basic.Cancel):
            self._on_cancel(method.consumer_tag or "")
        else:
            self._answer(method, type(method))

    def _on_cancel(self, tag: str) -> None:
        consumer = self._end_consumer(tag)
        if consumer is not None and consumer.on_cancel is not None:
            consumer.on_cancel(
                Unavailable(
                    "consumer: the broker ended it: its queue was deleted or lost its leader; consume again",
                    reason="consumer_cancelled",
                )
            )

    def _answer(self, answer: object, kind: type[base.Frame]) -> None:
        if not self._replies or kind not in self._replies[0][1]:
            raise WireError(f"{kind.name} that nobody asked for")
        _, _, waiter = self._replies.popleft()
        if not waiter.done():
            waiter.set_result(answer)
        else:  # the one who asked was cancelled
            self._give_back(answer)

    def _give_back(self, answer: object) -> None:
        if isinstance(answer, Delivery) and self.error is None:
            self.nack(answer.tag)

    def _on_frame_closed(self, kind: int, payload: bytes) -> None:
        """After the end only the two sides' `close` are of interest; what else is under way is passed over."""
        if kind != METHOD:
            return
        index = method_index(payload)
        if index == commands.Channel.Close.index:
            self._tell(commands.Channel.CloseOk())
        elif index == commands.Channel.CloseOk.index:
            self._closed()

    # -- small things

    def _check(self) -> None:
        if self.error is not None:
            raise afterwards(self.error)

    def _settle(self, method_id: int, tag: int, bits: int) -> None:
        if self.error is not None:
            raise afterwards(self.error)
        self._wire.send((settle_method(self.number, method_id, tag, bits),), 21)

    def _tell(self, method: base.Frame) -> None:
        data = encode_method(self.number, method)
        self._wire.send((data,), len(data))

    def _publisher(self, what: str) -> Confirms:
        if self._confirms is None:
            raise WireError(f"{what} on a channel without confirms")
        return self._confirms

    def _close(self, error: GroundplaneError) -> None:
        """This side closes: the broker's answer frees the number."""
        self._closing = self._loop.create_future()
        self._tell(build(commands.Channel.Close, reply_code=200, reply_text="goodbye", class_id=0, method_id=0))
        self.fail(error)

    def _closed(self) -> None:
        self._host.forget(self.number)
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)


def _pass_over(delivery: Delivery) -> None:
    """A message of a consumer that was given up, and that needs no settling."""
