"""Both end actors in one process, without a runtime: `python -m groundplane.mesh.ends`.

It also collects claims that nothing refers to and old notes of the ledger, once an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from groundplane.blobs.store import Blobs
from groundplane.core.collection import ease_collection
from groundplane.core.durations import parse_duration
from groundplane.core.envelope import ERROR_END, HAPPY_END
from groundplane.core.environment import EnvironmentView
from groundplane.core.errors import GroundplaneError, InvalidArgument, NotFound, Unavailable
from groundplane.jobs.store import Jobs
from groundplane.mesh.claims import COLLECT_AFTER_S, Claims, collect
from groundplane.mesh.ends import End
from groundplane.mesh.ledger import open_ledger
from groundplane.mesh.ready import write_ready
from groundplane.mesh.repeats import Repeats, Window, needs
from groundplane.mesh.reporting import JobReporter, Reporter
from groundplane.mesh.settling import Settler
from groundplane.mesh.sidecar.calls import Active
from groundplane.mesh.sidecar.config import first_of, with_exchange
from groundplane.mesh.sidecar.loop import Loop, flow_check
from groundplane.mesh.sidecar.process import EXIT_STORE, Opener, ToldToStop, consume_patiently, draining, open_patiently
from groundplane.mesh.signals import drained_by_signals
from groundplane.mesh.spec import ERRORS_PREFIX, RESULTS_PREFIX, Limits
from groundplane.mesh.start import queue_specs
from groundplane.mesh.tracing import followed
from groundplane.queues.client import Queues
from groundplane.telemetry.admin import serve_admin
from groundplane.telemetry.health import Health, backend_of
from groundplane.telemetry.logs import configure, get_logger
from groundplane.telemetry.metrics import ActorMetrics, CollectorRegistry
from groundplane.telemetry.process import process_registry
from groundplane.telemetry.traces import tracing

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_QUEUE = 0, 1, 2, 4
_LOOK_FIRST_S, _LOOK_EVERY_S = 0.05, 0.5


class EndsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the end actors need to know. `joins` names the actors that join (a failed child may wait for them)."""

    limits: Limits = Limits()
    namespace: str = "default"
    state: str = ".groundplane"
    queues: str = "embedded://"
    jobs: str = "embedded://"
    blobs: str = "embedded://"
    ledger: str = "embedded://"
    exchange: str | None = None
    happy_end: str = HAPPY_END
    error_end: str = ERROR_END
    results_prefix: str = RESULTS_PREFIX
    errors_prefix: str = ERRORS_PREFIX
    joins: list[str] = []
    gateway_url: str | None = None
    concurrency: int = 64
    start_timeout_s: float = 30.0
    collect_every_s: float = 3600.0
    collect_after_s: float = COLLECT_AFTER_S
    admin_host: str = "127.0.0.1"
    admin_port: int = 0
    ready_file: str | None = None
    declare: bool = False
    log_level: str | None = None


_TEXT_FLAGS = {
    "namespace": ("GROUNDPLANE_NAME",),
    "state": ("GROUNDPLANE_STATE",),
    "queues": ("GROUNDPLANE_QUEUES_URL", "ASYA_RABBITMQ_URL", "RABBITMQ_URL"),
    "jobs": ("GROUNDPLANE_JOBS_URL", "DATABASE_URL"),
    "blobs": ("GROUNDPLANE_BLOBS_URL",),
    "ledger": ("GROUNDPLANE_LEDGER_URL", "DATABASE_URL"),
    "exchange": ("GROUNDPLANE_EXCHANGE", "ASYA_RABBITMQ_EXCHANGE"),
    "happy_end": ("GROUNDPLANE_HAPPY_END", "ASYA_STEP_HAPPY_END"),
    "error_end": ("GROUNDPLANE_ERROR_END", "ASYA_STEP_ERROR_END"),
    "gateway_url": ("GROUNDPLANE_GATEWAY_URL", "ASYA_GATEWAY_URL"),
    "results_prefix": ("GROUNDPLANE_ACTOR_RESULTS_PREFIX",),
    "errors_prefix": ("GROUNDPLANE_ACTOR_ERRORS_PREFIX",),
    "admin_host": ("GROUNDPLANE_ACTOR_ADMIN_HOST",),
    "admin_port": ("GROUNDPLANE_ACTOR_ADMIN_PORT",),
    "ready_file": ("GROUNDPLANE_ACTOR_READY_FILE",),
    "log_level": ("GROUNDPLANE_LOG_LEVEL", "ASYA_LOG_LEVEL", "LOG_LEVEL"),
}


def load(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> EndsConfig:
    """The settings of this process: flags over a JSON document over the environment. `invalid_argument` if wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m groundplane.mesh.ends",
        description="The happy end and the error end of every route.",
        epilog="exit codes: 0 drained, 1 failed, 2 usage, 4 queue_not_ready, 5 store_not_ready",
    )
    parser.add_argument("--config", help="a JSON document, or the name of a file with one")
    parser.add_argument("--declare", action="store_true", help="create the queues that are missing")
    parser.add_argument("--joins", help="names of the actors that join, separated by commas")
    parser.add_argument("--start-timeout", help="how long to wait for the queues, as 30s")
    parser.add_argument("--grace", help="time to finish after SIGTERM, as 30s")
    for name, variables in _TEXT_FLAGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=", ".join(variables))
    given = parser.parse_args(arguments)
    document = _document(given.config)
    environment = EnvironmentView(environ)
    for name, variables in _TEXT_FLAGS.items():
        found = getattr(given, name)
        if found is None and name not in document:
            _, found = first_of(environment, variables, secret=variables[0].endswith("_URL"))
        if found is not None:
            document[name] = found
    if given.joins is not None:
        document["joins"] = [name for name in given.joins.split(",") if name]
    if given.start_timeout is not None:
        document["start_timeout_s"] = parse_duration("--start-timeout", given.start_timeout)
    if given.grace is not None:
        document.setdefault("limits", {})["grace_s"] = parse_duration("--grace", given.grace)
    if given.declare:
        document["declare"] = True
    try:
        config = msgspec.convert(document, EndsConfig, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"config: {error}") from error
    return msgspec.structs.replace(config, queues=with_exchange(config.queues, config.exchange))


def _document(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        if not text.lstrip().startswith("{"):
            with open(text, "rb") as file:
                return dict(msgspec.json.decode(file.read(), type=dict[str, Any]))
        return dict(msgspec.json.decode(text, type=dict[str, Any]))
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidArgument(f"config: {text[:200]!r} is neither JSON nor a file with JSON: {error}") from error


class Ends:
    """The process. `run` returns the exit code."""

    def __init__(self, config: EndsConfig) -> None:
        self._config = config
        self._log = get_logger("ends")
        self._stop = asyncio.Event()
        self._repeats: Repeats | None = None

    def stop(self) -> None:
        """Begin to drain."""
        self._stop.set()

    async def run(self) -> int:
        """Open everything, handle until stopped, drain, close."""
        try:
            with drained_by_signals(self.stop):
                config = self._config
                async with AsyncExitStack() as stack:
                    spans = tracing("groundplane-ends", "ends", namespace=config.namespace, queues=config.queues)
                    await stack.enter_async_context(spans)
                    return await self._run(stack)
        except ToldToStop:
            return EXIT_OK
        except GroundplaneError as error:
            self._log.error("failed", error=str(error), reason=error.reason)
            if error.code == "invalid_argument":
                return EXIT_USAGE
            return {"queue_not_ready": EXIT_QUEUE, "store_not_ready": EXIT_STORE}.get(error.reason, EXIT_FAILED)

    async def _run(self, stack: AsyncExitStack) -> int:
        config = self._config
        registry = process_registry("ends", folder=Path(config.state))
        health = Health("ends")
        health.starting("the queues of the ends")
        serving = serve_admin(config.admin_host, config.admin_port, registry, health)
        port = await stack.enter_async_context(serving)
        queues = await self._wait_for_queues(stack)
        if queues is None:
            return EXIT_OK
        blobs = await self._store(stack, "blobs", lambda: Blobs.open(config.blobs, state=config.state))
        reporter = await self._reporter(stack, queues)
        self._repeats = await self._dropping_repeats(stack, queues)
        loops: list[Loop] = []
        for name, failed in ((config.happy_end, False), (config.error_end, True)):
            loop, active = await self._end(stack, name, failed, queues, blobs, reporter, registry)
            loops.append(loop)
            health.add(name, flow_check(queues, name, loop, active), backend=backend_of(config.queues))
        health.add("drain", draining(self._stop))
        health.started()
        collector = asyncio.create_task(self._collect(queues, blobs), name="ends-collect")
        try:
            with write_ready(config.ready_file, {"admin_port": port}):
                self._log.info("ready", pid=os.getpid(), admin_port=port)
                await self._until_stopped(loops)
            await asyncio.gather(*(loop.drain(config.limits.grace_s) for loop in loops))
        finally:
            collector.cancel()
            await asyncio.gather(collector, return_exceptions=True)
        if reporter is not None:
            await reporter.aclose()
        self._log.info("drained")
        return EXIT_OK if self._stop.is_set() else EXIT_FAILED

    async def _until_stopped(self, loops: list[Loop]) -> None:
        """Until told to stop, or one of the two fails: then both end, and whoever supervises starts them again."""
        either = asyncio.Event()
        stopped = asyncio.create_task(self._stop.wait())
        running = [asyncio.create_task(loop.run(either)) for loop in loops]
        await asyncio.wait({stopped, *running}, return_when=asyncio.FIRST_COMPLETED)
        either.set()
        stopped.cancel()
        await asyncio.gather(stopped, *running, return_exceptions=True)

    async def _end(
        self,
        stack: AsyncExitStack,
        name: str,
        failed: bool,
        queues: Queues,
        blobs: Blobs,
        reporter: Reporter | None,
        registry: CollectorRegistry,
    ) -> tuple[Loop, Active]:
        config = self._config
        timeout_s = config.start_timeout_s
        consumer = await consume_patiently(stack, queues, name, config.concurrency, self._stop, timeout_s)
        settler, active = Settler(consumer), Active()
        metrics = ActorMetrics(registry, name)
        metrics.concurrency.set(config.concurrency)
        end = End(
            name,
            failed=failed,
            prefix=config.errors_prefix if failed else config.results_prefix,
            blobs=blobs,
            claims=Claims(blobs, config.limits),
            settler=settler,
            active=active,
            metrics=metrics,
            log=self._log.bind(actor=name),
            reporter=reporter,
            joins=frozenset(config.joins),
            repeats=self._repeats,
        )
        loop = Loop(
            consumer,
            settler,
            followed(end.handle, name),
            concurrency=config.concurrency,
            window=config.concurrency,
            active=active,
            metrics=metrics,
            log=self._log.bind(actor=name),
        )
        return loop, active

    async def _dropping_repeats(self, stack: AsyncExitStack, queues: Queues) -> Repeats | None:
        config = self._config
        if not needs(queues):
            return None
        if not config.ledger:
            return Repeats(Window())
        options: dict[str, Any] = {"namespace": config.namespace, "state": config.state, "inline": True}
        return Repeats(await self._store(stack, "ledger", lambda: open_ledger(config.ledger, **options)))

    async def _wait_for_queues(self, stack: AsyncExitStack) -> Queues | None:
        config = self._config
        give_up_at = asyncio.get_running_loop().time() + config.start_timeout_s
        queues: Queues | None = None
        pause_s = _LOOK_FIRST_S
        while not self._stop.is_set():
            try:
                if queues is None:
                    queues = await stack.enter_async_context(
                        Queues.open(config.queues, namespace=config.namespace, state=config.state, inline=True)
                    )
                    if config.declare:
                        await queues.declare(*queue_specs([], happy_end=config.happy_end, error_end=config.error_end))
                for name in (config.happy_end, config.error_end):
                    await queues.depth(name)
                return queues
            except (NotFound, Unavailable) as error:
                if asyncio.get_running_loop().time() >= give_up_at:
                    raise Unavailable(
                        f"queue: the end actors' were not there within {config.start_timeout_s:g} s: {error}",
                        reason="queue_not_ready",
                    ) from error
                await asyncio.sleep(pause_s)
                pause_s = min(_LOOK_EVERY_S, pause_s * 1.5)
        return None

    async def _reporter(self, stack: AsyncExitStack, queues: Queues) -> Reporter | None:
        config = self._config
        if config.gateway_url is not None:
            from groundplane.mesh.reporting_http import HttpReporter

            return HttpReporter(config.gateway_url)
        if not config.jobs:
            return None
        jobs = await self._store(
            stack,
            "jobs",
            lambda: Jobs.open(config.jobs, namespace=config.namespace, state=config.state, inline=True),
        )
        return JobReporter(jobs, queues=queues)

    async def _store(self, stack: AsyncExitStack, name: str, opener: Opener) -> Any:
        return await open_patiently(stack, name, opener, self._stop, self._config.start_timeout_s)

    async def _collect(self, queues: Queues, blobs: Blobs) -> None:
        config = self._config
        while True:
            await asyncio.sleep(config.collect_every_s)
            try:
                claims = await collect(blobs, queues.driver.dead_letters, older_than_s=config.collect_after_s)
                notes = 0
                if config.ledger:
                    options: dict[str, Any] = {"namespace": config.namespace, "state": config.state, "inline": True}
                    async with open_ledger(config.ledger, **options) as ledger:
                        notes = await ledger.collect(config.collect_after_s)
                self._log.info("collected", claims=claims, notes=notes)
            except GroundplaneError as error:
                self._log.warning("collect_failed", error=str(error))


def main() -> int:
    """Run the end actors until SIGTERM."""
    try:
        config = load()
        configure(config.log_level)
    except InvalidArgument as error:
        get_logger("ends").error("usage", error=str(error))
        return EXIT_USAGE
    ease_collection()
    return asyncio.run(_run(config))


async def _run(config: EndsConfig) -> int:
    return await Ends(config).run()
