"""Which queues were declared, with which limits: the broker tells neither, and cannot change a limit."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from groundplane.queues.drivers.rabbitmq.link import Link
from groundplane.queues.drivers.rabbitmq.log import Log
from groundplane.queues.drivers.rabbitmq.names import Names
from groundplane.queues.port import QueueSpec

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(QueueSpec).decode


class Registry:
    """The declared queues of a namespace, as its log tells them; the last record of a queue counts."""

    def __init__(self, link: Link, names: Names) -> None:
        self._link = link
        self._specs: dict[str, QueueSpec] = {}
        self._log = Log(link, names.exchange, names.registry, self._fold, self._specs.clear)

    async def fresh(self) -> None:
        """Returns when what was declared before is known here. Cheap when it is."""
        await self._log.synced(await self._link.ready())

    async def declare(self, specs: Sequence[QueueSpec]) -> None:
        """Record limits that are new or changed; known here when it returns."""
        await self._log.sync()
        changed = [spec for spec in specs if self._specs.get(spec.name) != spec]
        if changed:
            await self._log.append(*map(_encode, changed))
            await self._log.sync()

    def spec(self, queue: str) -> QueueSpec:
        """The limits of a queue; the defaults where nobody declared them, as after loading definitions."""
        return self._specs.get(queue) or QueueSpec(name=queue)

    def knows(self, queue: str) -> bool:
        return queue in self._specs

    def all(self) -> list[QueueSpec]:
        """By name."""
        return [self._specs[name] for name in sorted(self._specs)]

    def _fold(self, record: bytes) -> None:
        try:
            spec = _decode(record)
        except msgspec.DecodeError:
            return  # of a newer version, which adds fields by new records only
        self._specs[spec.name] = spec
