"""What was handed back without costing an attempt.

Whatever returns to a quorum queue has the broker's delivery count raised, whether its consumer crashed or handed it
back (until RabbitMQ 4.3). So who hands back records first at which attempt, and which count the broker will say next;
who is handed such a message reads that, and counts on from there. A record that is lost costs an attempt, no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from groundplane.core.errors import NotFound
from groundplane.queues.drivers.rabbitmq.link import Link, Session
from groundplane.queues.drivers.rabbitmq.log import Log
from groundplane.queues.drivers.rabbitmq.names import Names

_REMEMBERED = 200_000
_COUNTS_NOT_SINCE = (4, 3)


class Returned(msgspec.Struct, array_like=True, frozen=True):
    """A copy that was handed back at `attempt`; the next delivery has the count `count` unless it crashed between.

    `unseen`: no consumer got it, it only lay in a buffer.
    """

    copy: bytes
    attempt: int
    count: int
    unseen: bool


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Returned]).decode


class Returns:
    """The log of what was handed back in a namespace."""

    def __init__(self, link: Link, names: Names) -> None:
        self._known: dict[bytes, Returned] = {}
        self._log = Log(link, names.exchange, names.returns, self._fold, self._known.clear)

    async def record(self, session: Session, back: Sequence[tuple[bytes, int, int, bool]]) -> None:
        """Record copies with their attempt, the count at this delivery, and whether no consumer saw them."""
        raised = counts_returns(session.consuming.server.version)
        records = [Returned(copy, attempt, count + raised, unseen) for copy, attempt, count, unseen in back]
        try:
            await self._log.append(_encode(records))
        except NotFound:
            pass  # no log was declared: they cost an attempt

    async def read(self) -> None:
        """Returns when everything that was recorded before is known."""
        await self._log.sync()

    def attempt(self, copy: bytes, attempt: int, count: int) -> tuple[int, bool]:
        """Attempt of a delivery whose note says `attempt` and whose broker says `count`, and whether it was seen."""
        if not count:
            return attempt, False
        known = self._known.get(copy)
        if known is None or count < known.count:
            return attempt + count, True
        crashes = count - known.count
        return known.attempt + crashes, not known.unseen or crashes > 0

    def _fold(self, record: bytes) -> None:
        try:
            returned = _decode(record)
        except msgspec.DecodeError:
            return  # of a newer version
        for one in returned:
            self._known.pop(one.copy, None)
            self._known[one.copy] = one
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]


def counts_returns(version: str) -> int:
    """1 where the broker raises the delivery count of what is handed back, else 0."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return 0 if numbers >= _COUNTS_NOT_SINCE else 1
