"""Plane: the opened ports of one process. Settings decide the drivers; nothing is imported before it is needed."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from groundplane.core.diagnosis import Diagnosis, load_diagnose
from groundplane.core.errors import Closed, DeadlineExceeded, GroundplaneError, InvalidArgument, Unavailable
from groundplane.core.names import did_you_mean
from groundplane.core.settings import Settings, load

if TYPE_CHECKING:
    from groundplane.blobs import Blobs
    from groundplane.bus import Bus
    from groundplane.jobs import Jobs
    from groundplane.kv import KV
    from groundplane.mesh.ledger import Ledger
    from groundplane.mesh.spec import ActorSpec
    from groundplane.queues import Queues
    from groundplane.security import Security

PORTS = ("queues", "jobs", "ledger", "blobs", "security", "kv", "bus")
CHECK_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 10.0
_DRIVERS = {
    "queues": "groundplane.queues.drivers",
    "jobs": "groundplane.jobs.drivers",
    "ledger": "groundplane.mesh.ledger.drivers",
    "blobs": "groundplane.blobs.drivers",
    "security": "groundplane.security.drivers",
    "kv": "groundplane.kv.drivers",
    "bus": "groundplane.bus.drivers",
}


class Plane:
    """Queues, jobs, ledger, blobs, security, keys and bus of one plane, opened together and closed together.

    Made by `Plane.open`. Everything may be called concurrently. A port that was not asked for, and every port after
    closing, raises `closed`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._ports: dict[str, Any] = {}
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closing is not None else f"open: {', '.join(self._ports)}"
        return f"<Plane {self.settings.name} {state}>"

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: Settings | None = None,
        *,
        ports: Collection[str] = PORTS,
        upgrade: bool = False,
        inline: bool = False,
    ) -> AsyncIterator[Plane]:
        """Open `ports`, all or none. Without `settings` they are loaded from the environment and `groundplane.toml`.

        Data of an older schema is migrated only with `upgrade`; else `failed_precondition` (`schema_old`) names the
        command. `schema_newer`, `foreign_database`, `read_only`, `disk_full` come from the drivers. `inline` lets the
        embedded drivers work in the event loop where that needs no waiting.
        """
        plane = cls(
            settings if settings is not None else load(schemes=installed_schemes(), lacking=lacking_schemes()).settings
        )
        for port in ports:
            if port not in PORTS:
                raise InvalidArgument(f"ports: {port!r} is none of {', '.join(PORTS)}{did_you_mean(port, PORTS)}")
        async with AsyncExitStack() as stack:
            for port in (port for port in PORTS if port in ports):
                plane._ports[port] = await stack.enter_async_context(plane._opener(port, upgrade, inline))
            stack.push_async_callback(plane.aclose)
            yield plane

    @property
    def queues(self) -> Queues:
        """The work queues."""
        return self._port("queues")  # type: ignore[no-any-return]

    @property
    def jobs(self) -> Jobs:
        """The jobs."""
        return self._port("jobs")  # type: ignore[no-any-return]

    @property
    def ledger(self) -> Ledger:
        """Effects done once, and joins."""
        return self._port("ledger")  # type: ignore[no-any-return]

    @property
    def blobs(self) -> Blobs:
        """Objects by key."""
        return self._port("blobs")  # type: ignore[no-any-return]

    @property
    def security(self) -> Security:
        """Keys, audit log, sessions, shared secrets."""
        return self._port("security")  # type: ignore[no-any-return]

    @property
    def kv(self) -> KV:
        """Small values by key, in the bucket `default`, with TTL."""
        return self._port("kv")  # type: ignore[no-any-return]

    def bucket(
        self, bucket: str, *, history: int = 1, ttl: bool = False, create: bool = True
    ) -> AbstractAsyncContextManager[KV]:
        """Open another bucket of the plane's keys (`KV.open`); its block is to end before the plane is closed."""
        from groundplane.kv import KV

        settings = self.settings
        place: dict[str, Any] = {"namespace": settings.name, "state": settings.state}
        return KV.open(settings.kv.reveal(), bucket=bucket, history=history, ttl=ttl, create=create, **place)

    @property
    def bus(self) -> Bus:
        """Requests, events and commands."""
        return self._port("bus")  # type: ignore[no-any-return]

    async def declare(self, actors: Iterable[ActorSpec]) -> None:
        """Make the queue of each actor and of the two end actors. Idempotent, concurrent; messages are kept."""
        from groundplane.mesh.start import queue_specs

        await self.queues.declare(*queue_specs(list(actors)))

    async def check(self) -> dict[str, GroundplaneError | None]:
        """Ask each open port for something small, within 5 s each: None, or what is wrong. Never raises."""
        answers = await asyncio.gather(*(self._check(port) for port in self._ports))
        return dict(zip(self._ports, answers, strict=True))

    async def aclose(self) -> None:
        """Close every port, the last opened first, within 10 s. Idempotent; calls under way end with `closed`."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="plane:close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await asyncio.gather(*(port.aclose() for port in self._ports.values()))

    async def _check(self, port: str) -> GroundplaneError | None:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await self._ask(port)
        except GroundplaneError as error:
            return error
        except TimeoutError:
            return DeadlineExceeded(f"{port}: did not answer within {CHECK_TIMEOUT_S:g} s")
        return None

    async def _ask(self, port: str) -> None:
        from groundplane.jobs.port import JobQuery
        from groundplane.mesh.ledger import JoinKey

        if port == "queues":
            await self.queues.queues()
        elif port == "jobs":
            await self.jobs.list_jobs(JobQuery(limit=1))
        elif port == "blobs":
            await self.blobs.list_page("groundplane-check", limit=1)
        elif port == "security":
            await self.security.list_keys(limit=1)
        elif port == "kv":
            await self.kv.get("groundplane-check")
        elif port == "bus":
            status, _ = await self.bus.status()
            if not status.ready:
                raise Unavailable(f"bus: {status.problem}")
        else:
            await self.ledger.join_items(JoinKey("groundplane-check", 0, "none"))

    def _opener(self, port: str, upgrade: bool, inline: bool) -> Any:
        settings, url = self.settings, getattr(self.settings, port).reveal()
        if port == "blobs":
            from groundplane.blobs import Blobs

            return Blobs.open(url, state=settings.state)
        if port == "ledger":
            from groundplane.mesh.ledger import open_ledger

            return open_ledger(url, namespace=settings.name, state=settings.state, upgrade=upgrade)
        options: dict[str, Any] = {
            "namespace": settings.name, "state": settings.state, "upgrade": upgrade, "inline": inline,
        }  # fmt: skip
        if port == "queues":
            from groundplane.queues import Queues

            return Queues.open(url, **options)
        if port == "kv":
            from groundplane.kv import KV

            return KV.open(url, **options, ttl=True)
        if port == "bus":
            return open_bus(url, **options, name=settings.name)
        if port == "security":
            from groundplane.security import Security

            return Security.open(url, **options, audit_retention_s=settings.retention_audit_s)
        from groundplane.jobs import Jobs, Retention

        kept = Retention(jobs_s=settings.retention_jobs_s, events_s=settings.retention_events_s)
        return Jobs.open(url, **options, retention=kept)

    def _port(self, name: str) -> Any:
        if self._closing is not None:
            raise Closed(f"{name}: the plane is closed; open it again")
        if name not in self._ports:
            raise Closed(f"{name}: was not opened; Plane.open(ports=…) opened {', '.join(self._ports) or 'none'}")
        return self._ports[name]


def has_keys(settings: Settings) -> bool:
    """Whether the keys are for all processes of the plane: not where they are in a folder, and the jobs on a server."""
    return settings.kv.scheme != "embedded" or settings.jobs.scheme == "embedded"


def has_bus(settings: Settings) -> bool:
    """Whether the bus is for all processes of the plane, as `has_keys` says of the keys."""
    return settings.bus.scheme != "embedded" or settings.jobs.scheme == "embedded"


def open_bus(url: str, *, name: str, **options: Any) -> AbstractAsyncContextManager[Bus]:
    """Open a bus in the name of a plane or an actor: what sidecars find here, as the mesh knows no bus."""
    from groundplane.bus import Bus

    return Bus.open(url, **options, name=bus_name(name))


def bus_name(plane: str) -> str:
    """Who sends on the bus for a plane or an actor: its name, as far as the bus allows."""
    return plane.replace(".", "-")[:48]


async def diagnose(settings: Settings, port: str, *, names: Sequence[str] = ()) -> Diagnosis | None:
    """Look at the server of a port as a role would meet it, leaving nothing there. `names` are queues to look at.

    None for embedded storage, and for drivers that have no such look. Raises what the role would: each error by name,
    within the timeouts of the URL.
    """
    url = getattr(settings, port).reveal()
    table: dict[str, str] = importlib.import_module(_DRIVERS[port]).DIAGNOSES
    found = load_diagnose(url.partition("://")[0].lower(), table)
    return await found(url, namespace=settings.name, names=names) if found is not None else None


class _KnownSchemes(Mapping[str, "frozenset[str] | None"]):
    """The schemes of one port: those of its table, and those of installed packages, looked up only when asked for."""

    def __init__(self, port: str) -> None:
        self._port = port
        self._own: dict[str, str] = importlib.import_module(_DRIVERS[port]).DRIVERS

    def __getitem__(self, scheme: str) -> frozenset[str] | None:
        if scheme == "embedded":
            return frozenset()
        if scheme in self._own or scheme in self._others():
            return None  # the driver knows its parameters
        raise KeyError(scheme)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._own, **dict.fromkeys(self._others())})

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _others(self) -> list[str]:
        from importlib.metadata import entry_points

        return [point.name for point in entry_points(group=f"groundplane.{self._port}")]


def installed_schemes() -> Mapping[str, Mapping[str, frozenset[str] | None]]:
    """For each port the URL schemes that a driver is installed for: what `core.settings.load` checks URLs against."""
    return {port: _KnownSchemes(port) for port in PORTS}


def lacking_schemes() -> dict[str, str]:
    """Schemes whose driver is ours but misses its package, and the extra that brings it."""
    return {scheme: extra for scheme, (package, extra) in _NEEDS.items() if find_spec(package) is None}


_NEEDS = {
    **dict.fromkeys(("amqp", "amqps"), ("pamqp", "rabbitmq")),
    **dict.fromkeys(("postgresql", "postgres"), ("psycopg", "postgres")),
    "s3": ("obstore", "s3"),
    **dict.fromkeys(("nats", "tls"), ("nats", "nats")),
}
