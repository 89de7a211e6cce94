"""A broker made of answers: it says what RabbitMQ would, or what the test tells it to say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from pamqp import base, body, commands, frame, header

from groundplane.backends.amqp.frames import METHOD, PROTOCOL_HEADER, FrameReader

Answer = Callable[[int, Any], bytes]
SERVER_PROPERTIES: dict[str, Any] = {
    "product": "RabbitMQ",
    "version": "3.13.7",
    "cluster_name": "peer",
    "capabilities": {"publisher_confirms": True, "basic.nack": True},
}


def method(channel: int, what: base.Frame) -> bytes:
    """A method frame, by pamqp."""
    return frame.marshal(what, channel)


def content(channel: int, data: bytes, properties: commands.Basic.Properties | None = None, piece: int = 4000) -> bytes:
    """Content header and bodies, by pamqp."""
    parts = [frame.marshal(header.ContentHeader(0, len(data), properties or commands.Basic.Properties()), channel)]
    parts += [frame.marshal(body.ContentBody(data[at : at + piece]), channel) for at in range(0, len(data), piece)]
    return b"".join(parts)


def deliver(channel: int, consumer: str, tag: int, data: bytes, **headers: Any) -> bytes:
    """A whole delivery."""
    announced = commands.Basic.Deliver(consumer, tag, False, "", "work")
    return method(channel, announced) + content(channel, data, commands.Basic.Properties(headers=headers or None))


def channel_close(channel: int, code: int, text: str, class_id: int, method_id: int) -> bytes:
    return method(channel, commands.Channel.Close(code, text, class_id, method_id))


def connection_close(code: int, text: str, class_id: int = 0, method_id: int = 0) -> bytes:
    return method(0, commands.Connection.Close(code, text, class_id, method_id))


class FakeBroker:
    """One conversation. `answers` maps the names of methods to what is said to them instead of the customary."""

    def __init__(self, **answers: Answer | bytes) -> None:
        self.answers: dict[str, Answer | bytes] = {name.replace("_", "."): one for name, one in answers.items()}
        self.heard: list[str] = []
        self.said: dict[str, Any] = {}
        self.published: dict[int, int] = {}
        self.bodies: list[bytes] = []
        self.begin()

    def begin(self) -> None:
        """Another client comes: the conversation starts anew."""
        self._reader = FrameReader(2**27)
        self._greeted = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What is answered to these bytes of the client."""
        if not self._greeted:
            assert data.startswith(PROTOCOL_HEADER)
            data, self._greeted = data[len(PROTOCOL_HEADER) :], True
            yield self._answer("greeting", 0, None)
        for kind, channel, payload in self._reader.feed(data):
            if kind == METHOD:
                head = b"\x01" + channel.to_bytes(2, "big") + len(payload).to_bytes(4, "big")
                _, _, what = frame.unmarshal(head + payload + b"\xce")
                self.heard.append(what.name)
                self.said[what.name] = what
                yield self._answer(what.name, channel, what)
            elif kind == 3:
                self.bodies.append(payload)

    def _answer(self, name: str, channel: int, what: Any) -> bytes:
        if name == "Channel.Open":
            self.published[channel] = 0
        chosen = self.answers.get(name, _CUSTOMARY.get(name, b""))
        if name == "Basic.Publish":
            self.published[channel] = tag = self.published.get(channel, 0) + 1
            if name not in self.answers:
                return method(channel, commands.Basic.Ack(tag))
        return chosen(channel, what) if callable(chosen) else chosen


def _consume_ok(channel: int, what: Any) -> bytes:
    return method(channel, commands.Basic.ConsumeOk(what.consumer_tag))


_CUSTOMARY: dict[str, Answer | bytes] = {
    "greeting": lambda c, m: method(0, commands.Connection.Start(0, 9, SERVER_PROPERTIES, "PLAIN AMQPLAIN", "en_US")),
    "Connection.StartOk": method(0, commands.Connection.Tune(2047, 131072, 60)),
    "Connection.Open": method(0, commands.Connection.OpenOk()),
    "Connection.Close": method(0, commands.Connection.CloseOk()),
    "Channel.Open": lambda c, m: method(c, commands.Channel.OpenOk()),
    "Channel.Close": lambda c, m: method(c, commands.Channel.CloseOk()),
    "Confirm.Select": lambda c, m: method(c, commands.Confirm.SelectOk()),
    "Basic.Qos": lambda c, m: method(c, commands.Basic.QosOk()),
    "Basic.Consume": _consume_ok,
    "Basic.Cancel": lambda c, m: b"" if m.nowait else method(c, commands.Basic.CancelOk(m.consumer_tag)),
    "Basic.Get": lambda c, m: method(c, commands.Basic.GetEmpty()),
    "Queue.Declare": lambda c, m: method(c, commands.Queue.DeclareOk(m.queue or "generated", 3, 1)),
    "Queue.Delete": lambda c, m: method(c, commands.Queue.DeleteOk(3)),
    "Queue.Purge": lambda c, m: method(c, commands.Queue.PurgeOk(3)),
    "Queue.Bind": lambda c, m: method(c, commands.Queue.BindOk()),
    "Queue.Unbind": lambda c, m: method(c, commands.Queue.UnbindOk()),
    "Exchange.Declare": lambda c, m: method(c, commands.Exchange.DeclareOk()),
    "Exchange.Delete": lambda c, m: method(c, commands.Exchange.DeleteOk()),
    "Exchange.Bind": lambda c, m: method(c, commands.Exchange.BindOk()),
}


class Served:
    """A fake broker behind a port of the loopback."""

    def __init__(self, broker: FakeBroker, port: int) -> None:
        self.broker = broker
        self.port = port
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/"
        self.connections = 0
        self._writers: list[asyncio.StreamWriter] = []
        self.frozen = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client until it leaves."""
        self.connections += 1
        self.broker.begin()
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                for answer in [] if self.frozen else self.broker.feed(data):
                    writer.write(answer)
        writer.close()

    def say(self, data: bytes) -> None:
        """To the client that came last, unasked."""
        self._writers[-1].write(data)

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()


@contextlib.asynccontextmanager
async def served(broker: FakeBroker | None = None) -> AsyncIterator[Served]:
    """A fake broker on a free port, until the end of the block."""
    one = Served(broker or FakeBroker(), 0)
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    one.url = f"amqp://guest:guest@127.0.0.1:{one.port}/"
    try:
        yield one
    finally:
        server.close()
        one.hang_up()
        await server.wait_closed()


class MemoryTransport(asyncio.Transport):
    """The client's side of a conversation without a socket: what it writes is answered in the same turn."""

    def __init__(self, protocol: asyncio.Protocol, broker: FakeBroker) -> None:
        super().__init__()
        self._protocol = protocol
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self.over = False

    def write(self, data: Any) -> None:
        for answer in self._broker.feed(bytes(data)):
            if not self.over:
                self._loop.call_soon(self.arrive, answer)

    def arrive(self, data: bytes) -> None:
        """Bytes of the broker."""
        if data and not self.over:
            self._protocol.data_received(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.over

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.over:
            self.over = True
            self._loop.call_soon(self._protocol.connection_lost, None)
