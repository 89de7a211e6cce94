"""The sidecar as a process: opens its ports, waits for queue and runtime, runs the loop, drains."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

from groundplane.blobs.store import Blobs
from groundplane.core.errors import GroundplaneError, NotFound, Unavailable
from groundplane.core.lazily import Lazily
from groundplane.jobs.store import Jobs
from groundplane.mesh.claims import Claims
from groundplane.mesh.ledger import Ledger, open_ledger
from groundplane.mesh.ready import write_ready
from groundplane.mesh.repeats import Repeats, Sender, Window, needs
from groundplane.mesh.reporting import JobReporter, Reporter
from groundplane.mesh.routing import Router
from groundplane.mesh.runtime_client import RuntimeClient, RuntimeSettings
from groundplane.mesh.settling import Settler
from groundplane.mesh.sidecar.bus import ServiceBus, opening
from groundplane.mesh.sidecar.calls import Active
from groundplane.mesh.sidecar.config import SidecarConfig
from groundplane.mesh.sidecar.fan_in import FanIn
from groundplane.mesh.sidecar.gate import Gate
from groundplane.mesh.sidecar.handling import Handling, Parts, Staged
from groundplane.mesh.sidecar.loop import WINDOW_MAX, Loop, flow_check
from groundplane.mesh.signals import drained_by_signals
from groundplane.mesh.start import queue_specs
from groundplane.mesh.tracing import followed
from groundplane.queues.client import Consumer, Queues
from groundplane.telemetry.admin import serve_admin
from groundplane.telemetry.health import Check, Health, backend_of
from groundplane.telemetry.logs import Logger, get_logger
from groundplane.telemetry.metrics import ActorMetrics, CustomMetrics
from groundplane.telemetry.process import process_registry
from groundplane.telemetry.traces import tracing

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_RUNTIME, EXIT_QUEUE, EXIT_STORE = 0, 1, 2, 3, 4, 5
_EXITS = {"runtime_not_ready": EXIT_RUNTIME, "queue_not_ready": EXIT_QUEUE, "store_not_ready": EXIT_STORE}
_LOOK_FIRST_S, _LOOK_EVERY_S = 0.05, 0.5
_LOOK_AGAIN_S = 0.25

Opener: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]


class ToldToStop(Exception):
    """The process was told to stop while it waited for a server: no failure."""


class Sidecar:
    """One sidecar. `run` returns the exit code."""

    def __init__(self, config: SidecarConfig) -> None:
        self._config = config
        self._log = get_logger("sidecar", actor=config.actor.name)
        self._stop = asyncio.Event()
        self._loop: Loop | None = None

    def stop(self) -> None:
        """Begin to drain."""
        self._stop.set()

    async def run(self) -> int:
        """Open everything, handle until stopped, drain, close."""
        try:
            with drained_by_signals(self.stop):
                async with AsyncExitStack() as stack:
                    await stack.enter_async_context(self._tracing())
                    return await self._run(stack)
        except ToldToStop:
            return EXIT_OK
        except GroundplaneError as error:
            self._log.error("failed", error=str(error), reason=error.reason)
            return EXIT_USAGE if error.code == "invalid_argument" else _EXITS.get(error.reason, EXIT_FAILED)

    def _tracing(self) -> AbstractAsyncContextManager[None]:
        config = self._config
        service = f"groundplane-actor-{config.actor.name}"
        return tracing(service, "sidecar", namespace=config.namespace, queues=config.queues)

    async def _run(self, stack: AsyncExitStack) -> int:
        config = self._config
        registry = process_registry("sidecar", folder=Path(config.state))
        metrics = ActorMetrics(registry, config.actor.name)
        metrics.concurrency.set(config.actor.concurrency)
        client = RuntimeClient(_spoken(config))
        health = Health(f"sidecar {config.actor.name}")
        health.starting("queue and runtime")
        serving = serve_admin(config.admin_host, config.admin_port, registry, health)
        port = await stack.enter_async_context(serving)
        stack.push_async_callback(client.aclose)
        queues = await self._unless_stopped(self._wait_for_both(stack, client))
        if queues is None:
            return EXIT_OK
        consumer = await consume_patiently(
            stack, queues, config.actor.name, config.window or WINDOW_MAX, self._stop, config.start_timeout_s
        )
        settler, active = Settler(consumer), Active()
        ledger = await self._ledger(stack)
        parts = Parts(
            router=Router(config.actor, config.limits, happy_end=config.happy_end, error_end=config.error_end),
            client=client,
            settler=settler,
            active=active,
            metrics=metrics,
            custom=CustomMetrics(registry, config.actor.name),
            log=self._log,
            reporter=await self._reporter(stack, queues, metrics),
            claims=await self._claims(stack),
            ledger=ledger,
            bus=self._bus(stack),
            staged=self._staged(queues, ledger),
            in_place=config.actor.key is not None,
        )
        handling = Handling(parts, asyncio.Semaphore(config.actor.concurrency))
        handler = FanIn(parts, handling) if config.actor.join else handling
        gate = Gate(parts, parts.staged, handling, handler.handle_envelope) if parts.staged is not None else None
        self._loop = Loop(
            consumer,
            settler,
            followed(gate.handle if gate is not None else handler.handle, config.actor.name),
            concurrency=config.actor.concurrency,
            window=config.window,
            active=active,
            metrics=metrics,
            log=self._log,
            key=config.actor.key,
        )
        health.add("runtime", _runtime_check(client))
        flow = flow_check(queues, config.actor.name, self._loop, active)
        health.add("flow", flow, backend=backend_of(config.queues))
        health.add("drain", draining(self._stop))
        health.started()
        await self._flow(parts, port)
        return EXIT_OK if self._stop.is_set() else EXIT_FAILED

    async def _flow(self, parts: Parts, port: int) -> None:
        config, loop = self._config, self._loop
        assert loop is not None
        async with _tasks() as spawn:
            if parts.reporter is not None:
                spawn(parts.active.watch_jobs(parts.reporter), "watch-jobs")
                spawn(parts.active.keep_beating(config.heartbeat_s), "heartbeats")
            with write_ready(config.ready_file, {"admin_port": port, "actor": config.actor.name}):
                self._log.info("ready", pid=os.getpid(), admin_port=port, protocol=parts.client.protocol)
                await loop.run(self._stop)
            await loop.drain(config.limits.grace_s)
        if parts.reporter is not None:
            await parts.reporter.aclose()
        self._log.info("drained", left=loop.in_flight)

    async def _unless_stopped(self, work: Awaitable[Any]) -> Any:
        """The value of `work`, or None when the process is told to stop meanwhile."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for one in (task, stopped):
                one.cancel()
            await asyncio.gather(task, stopped, return_exceptions=True)

    async def _wait_for_both(self, stack: AsyncExitStack, client: RuntimeClient) -> Queues:
        queues, _ = await asyncio.gather(self._wait_for_queue(stack), client.start())
        return queues

    async def _wait_for_queue(self, stack: AsyncExitStack) -> Queues:
        """The queues once the actor's own exists. `queue_not_ready` after `start_timeout_s`."""
        config = self._config
        give_up_at = asyncio.get_running_loop().time() + config.start_timeout_s
        queues: Queues | None = None
        pause_s = _LOOK_FIRST_S
        while True:
            try:
                if queues is None:
                    queues = await stack.enter_async_context(
                        Queues.open(config.queues, namespace=config.namespace, state=config.state, inline=True)
                    )
                    if config.declare:
                        await queues.declare(*queue_specs([config.actor]))
                await queues.depth(config.actor.name)
                return queues
            except (NotFound, Unavailable) as error:
                if asyncio.get_running_loop().time() >= give_up_at:
                    raise Unavailable(
                        f"queue: {config.actor.name!r} was not there within {config.start_timeout_s:g} s: {error}",
                        reason="queue_not_ready",
                    ) from error
                await asyncio.sleep(pause_s)
                pause_s = min(_LOOK_EVERY_S, pause_s * 1.5)

    async def _reporter(self, stack: AsyncExitStack, queues: Queues, metrics: ActorMetrics) -> Reporter | None:
        config = self._config
        if config.gateway_url is not None:
            from groundplane.mesh.reporting_http import HttpReporter

            return HttpReporter(config.gateway_url, lost=metrics.reports_lost.inc)
        if not config.jobs:
            return None
        jobs = await self._store(
            stack,
            "jobs",
            lambda: Jobs.open(config.jobs, namespace=config.namespace, state=config.state, inline=True),
        )
        return JobReporter(jobs, lost=metrics.reports_lost.inc, queues=queues)

    async def _claims(self, stack: AsyncExitStack) -> Claims | None:
        if not self._config.blobs:
            return None
        config = self._config
        blobs = await self._store(stack, "blobs", lambda: Blobs.open(config.blobs, state=config.state))
        return Claims(blobs, config.limits)

    def _staged(self, queues: Queues, ledger: Ledger | None) -> Staged | None:
        if not needs(queues):
            return None
        if ledger is None:
            self._log.warning("repeats_known_to_this_process_only", hint="give it --ledger")
        return Staged(repeats=Repeats(ledger if ledger is not None else Window()), sender=Sender(queues))

    async def _ledger(self, stack: AsyncExitStack) -> Ledger | None:
        config = self._config
        if not config.ledger:
            return None
        ledger: Ledger = await self._store(
            stack,
            "ledger",
            lambda: open_ledger(config.ledger, namespace=config.namespace, state=config.state, inline=True),
        )
        return ledger

    def _bus(self, stack: AsyncExitStack) -> Lazily[ServiceBus] | None:
        """The bus, opened when a handler asks for it."""
        config = self._config
        if not config.bus:
            return None
        place = {"namespace": config.namespace, "state": config.state, "name": config.actor.name}
        bus = Lazily("bus", opening(config.bus, **place))
        stack.push_async_callback(bus.aclose)
        return bus

    async def _store(self, stack: AsyncExitStack, name: str, opener: Opener) -> Any:
        return await open_patiently(stack, name, opener, self._stop, self._config.start_timeout_s)


async def consume_patiently(
    stack: AsyncExitStack, queues: Queues, name: str, window: int, stop: asyncio.Event, timeout_s: float
) -> Consumer:
    """A consumer of a queue that is there: a broker that starts tells of a queue before it lets anybody consume it."""
    consumer: Consumer = await open_patiently(
        stack, f"queue {name}", lambda: queues.consume(name, max_in_flight=window), stop, timeout_s, "queue_not_ready"
    )
    return consumer


async def open_patiently(
    stack: AsyncExitStack,
    name: str,
    opener: Opener,
    stop: asyncio.Event,
    timeout_s: float,
    reason: str = "store_not_ready",
    away: Callable[[Unavailable], None] = lambda error: None,
) -> Any:
    """Enter what `opener` makes; again while that is `unavailable`, which `away` is told. `unavailable` with `reason`
    after `timeout_s`, `ToldToStop` when told to stop.
    """
    give_up_at = asyncio.get_running_loop().time() + timeout_s
    while not stop.is_set():
        try:
            return await stack.enter_async_context(opener())
        except Unavailable as error:
            if asyncio.get_running_loop().time() >= give_up_at:
                raise Unavailable(f"{name}: was not there within {timeout_s:g} s: {error}", reason=reason) from error
            away(error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_AGAIN_S):
                await stop.wait()
    raise ToldToStop


def draining(stop: asyncio.Event) -> Check:
    """Red from the moment that the process is told to stop."""

    async def check() -> str | None:
        return "was told to stop" if stop.is_set() else None

    return check


def _spoken(config: SidecarConfig) -> RuntimeSettings:
    return RuntimeSettings(
        socket=config.socket,
        calls=config.actor.concurrency,
        protocol=config.protocol,
        connect_timeout_s=config.start_timeout_s,
    )


def _runtime_check(client: RuntimeClient) -> Check:
    async def check() -> str | None:
        return None if client.connected else f"no connection to the runtime at {client.settings.socket!r}"

    return check


@asynccontextmanager
async def _tasks() -> AsyncIterator[Callable[[Awaitable[None], str], None]]:
    """Tasks that live as long as the context."""
    tasks: list[asyncio.Task[None]] = []

    def spawn(work: Awaitable[None], name: str) -> None:
        async def run() -> None:
            await work

        tasks.append(asyncio.create_task(run(), name=name))

    try:
        yield spawn
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                _log().warning("background_task_failed", error=repr(outcome))


def _log() -> Logger:
    return get_logger("sidecar")


__all__ = ["EXIT_FAILED", "EXIT_OK", "EXIT_QUEUE", "EXIT_RUNTIME", "EXIT_USAGE", "Sidecar", "ToldToStop"]
