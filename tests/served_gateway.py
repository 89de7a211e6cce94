"""A gateway on embedded ports in this process, served on a free port, with actors that are plain coroutines.

The ports, the HTTP server and the clients are the real ones; only sidecars and runtimes are left out, which have
processes of their own (`test_gateway_scenarios.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from groundplane.blobs import Blobs
from groundplane.bus import Bus
from groundplane.core.envelope import Envelope
from groundplane.core.errors import ErrorRecord, InvalidArgument
from groundplane.gateway import Catalogue, Gateway, GatewaySettings, ToolTable
from groundplane.gateway.server import Served
from groundplane.jobs import Jobs
from groundplane.jobs.port import Ask, Finish, Progress, Question
from groundplane.mesh.routing import dedup_key
from groundplane.mesh.spec import ToolSpec
from groundplane.mesh.start import outbox_message
from groundplane.queues import Queues
from groundplane.queues.port import Ack, OutgoingMessage, QueueSpec
from groundplane.security import Security
from groundplane.services import Directory, RegistrationSettings, Registry
from groundplane.services.subscriptions import Subscriptions

Handler = Callable[[Any, Callable[[float, str], Awaitable[None]]], Awaitable[Any]]

VALUE: dict[str, Any] = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "mode": {"enum": ["fast", "deep"], "default": "fast"}},
    "required": ["value"],
    "additionalProperties": False,
}
OPEN: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": True}


def tool(name: str, *route: str, schema: dict[str, Any] = OPEN, **options: Any) -> ToolSpec:
    return ToolSpec(name=name, route=list(route or (name,)), input_schema=schema, **options)


@dataclass(kw_only=True)
class House:
    """What a test gets."""

    gateway: Gateway
    jobs: Jobs
    queues: Queues
    blobs: Blobs
    security: Security
    registry: Registry
    served: Served
    stop: asyncio.Event
    serving: asyncio.Task[None]
    state: Path

    @property
    def url(self) -> str:
        return self.served.url

    @asynccontextmanager
    async def http(self) -> AsyncIterator[httpx2.AsyncClient]:
        async with httpx2.AsyncClient(base_url=self.url, timeout=30) as client:
            yield client

    async def token_of(self, job_id: str, queue: str) -> str:
        """The per-job token from the envelope that waits in `queue`."""
        async with self.queues.consume(queue, max_in_flight=1) as consumer:
            (delivery,) = await consumer.receive(1, 10.0)
            envelope = Envelope.from_bytes(delivery.payload)
            assert envelope.job_id == job_id
            await consumer.ack(delivery)
            return str(envelope.headers["groundplane-job-token"])


@asynccontextmanager
async def house(
    state: Path,
    *specs: ToolSpec,
    table: ToolTable | None = None,
    catalogue: Catalogue | None = None,
    upgrade: bool = True,
    registration: RegistrationSettings | None = None,
    directory: Directory | None = None,
    bus: str = "embedded://",
    **settings: Any,
) -> AsyncIterator[House]:
    """Open the ports in `state`, serve a gateway with these tools."""
    chosen = GatewaySettings(**{"port": 0, "grace_s": 5.0, **settings})
    async with (
        Jobs.open(state=state, upgrade=upgrade) as jobs,
        Queues.open(state=state, upgrade=upgrade) as queues,
        Blobs.open("embedded://", state=state) as blobs,
        Security.open(state=state, upgrade=upgrade) as security,
        Registry.open(state=state, upgrade=upgrade, settings=registration) as registry,
        Directory.open(registry) as own,
        Subscriptions.open(partial(Bus.open, bus, state=state)) as subscriptions,
        Gateway.open(
            jobs=jobs,
            queues=queues,
            blobs=blobs,
            security=security,
            directory=directory or own,
            subscriptions=subscriptions,
            tools=table or ToolTable(specs),
            catalogue=catalogue,
            settings=chosen,
        ) as gateway,
    ):
        ready: asyncio.Future[Served] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        serving = asyncio.create_task(gateway.serve(on_ready=ready.set_result, stop=stop))
        try:
            await asyncio.wait({ready, serving}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            yield House(
                gateway=gateway,
                jobs=jobs,
                queues=queues,
                blobs=blobs,
                security=security,
                registry=registry,
                served=ready.result(),
                stop=stop,
                serving=serving,
                state=state,
            )
        finally:
            stop.set()
            await serving


@asynccontextmanager
async def actors(one: House, handlers: Mapping[str, Handler]) -> AsyncIterator[None]:
    """Consume the queues of `handlers` while open."""
    await one.queues.declare(*(QueueSpec(name=name) for name in handlers))
    tasks = [asyncio.create_task(_consume(one, name, handler)) for name, handler in handlers.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [one for one in ended if not isinstance(one, asyncio.CancelledError)] == [], "a consumer broke"


async def _consume(one: House, name: str, handler: Handler) -> None:
    async with one.queues.consume(name, max_in_flight=64) as consumer, asyncio.TaskGroup() as group:

        async def handle(delivery: Any) -> None:
            envelope = Envelope.from_bytes(delivery.payload)
            sends = await _run(one, name, handler, envelope)
            await consumer.settle([Ack(delivery)], sends)

        while True:
            for delivery in await consumer.receive(64):
                group.create_task(handle(delivery))


async def _run(one: House, name: str, handler: Handler, envelope: Envelope) -> list[OutgoingMessage]:
    assert envelope.job_id is not None
    job_id, hops = envelope.job_id, len(envelope.route.actors)

    async def report(weight: float, message: str = "") -> None:
        change = Progress(
            job_id=job_id,
            envelope_id=envelope.id,
            hop=envelope.route.current,
            hops=hops,
            actor=name,
            weight=weight,
            message=message,
        )
        await one.jobs.apply(change)

    await report(10.0)
    try:
        output = await handler(envelope.payload, report)
        msgspec.structs.replace(envelope, payload=output).to_bytes()  # refuses what a sidecar could not send
    except (ValueError, InvalidArgument) as error:
        record = ErrorRecord(code="internal", reason="processing_error", message=str(error), type=type(error).__name__)
        await one.jobs.apply(Finish(job_id=job_id, envelope_id=envelope.id, error=record))
        return []
    await report(100.0)
    if not envelope.route.future:
        await one.jobs.apply(Finish(job_id=job_id, envelope_id=envelope.id, result=output))
        return []
    ahead = msgspec.structs.replace(envelope, route=envelope.route.advanced(), payload=output)
    queue = ahead.route.actor
    assert queue is not None
    return [OutgoingMessage(queue=queue, payload=ahead.to_bytes(), id=ahead.id, dedup_key=dedup_key(ahead))]


async def echo(payload: Any, report: Any) -> Any:
    return payload


async def double(payload: Any, report: Any) -> Any:
    await report(50.0, "doubling")
    return {"value": payload["value"] * 2}


async def fail(payload: Any, report: Any) -> Any:
    raise ValueError("the handler is not amused")


@asynccontextmanager
async def asking_actor(one: House, name: str, *rounds: Sequence[Question]) -> AsyncIterator[None]:
    """An actor that asks round after round and then returns all answers by question id: what a sidecar leaves behind
    of a handler that asks, and runs again from its start after each answer.
    """
    await one.queues.declare(QueueSpec(name=name))
    task = asyncio.create_task(_ask_and_finish(one, name, rounds))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _ask_and_finish(one: House, name: str, rounds: Sequence[Sequence[Question]]) -> None:
    async with one.queues.consume(name, max_in_flight=64) as consumer:
        while True:
            for delivery in await consumer.receive(64):
                envelope = Envelope.from_bytes(delivery.payload)
                assert envelope.job_id is not None
                known = {found.question_id: found for found in await one.jobs.questions(envelope.job_id)}
                await one.jobs.apply(_next_step(name, envelope, rounds, known))
                await consumer.ack(delivery)


def _next_step(
    name: str, envelope: Envelope, rounds: Sequence[Sequence[Question]], known: Mapping[str, Question]
) -> Ask | Finish:
    assert envelope.job_id is not None
    for asked in rounds:
        missing = [one for one in asked if one.question_id not in known or known[one.question_id].state != "answered"]
        if missing:
            open_ones = [msgspec.structs.replace(one, actor=name, envelope_id=envelope.id) for one in missing]
            again = outbox_message(name, envelope, envelope.to_bytes(), dedup=f"{envelope.id}:{len(known)}")
            return Ask(job_id=envelope.job_id, questions=open_ones, message=again)
    answers = {key: {"action": found.action, "content": found.content} for key, found in known.items()}
    return Finish(job_id=envelope.job_id, envelope_id=envelope.id, result=answers)


class Gate:
    """A handler that waits until the test opens it, and tells when it was reached."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.reached = asyncio.Event()

    async def __call__(self, payload: Any, report: Any) -> Any:
        await report(50.0, "waiting")
        self.reached.set()
        await self.opened.wait()
        return payload


async def eventually(condition: Callable[[], Awaitable[Any]], timeout_s: float = 10.0) -> Any:
    """The first true value of `condition`, asked until `timeout_s` seconds have passed."""
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):
            await asyncio.sleep(0.01)
        return found


@asynccontextmanager
async def connection(one: House) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A raw connection, for what no HTTP client would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", one.served.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def raw(one: House, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, read one response."""
    async with connection(one) as (reader, writer):
        writer.write(request)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1")
        status, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await asyncio.wait_for(reader.readexactly(int(headers.get("content-length", "0"))), 10)
        return int(status.split(" ")[1]), headers, body
