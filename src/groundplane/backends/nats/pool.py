"""Several links to one address, in turn; dead ones are skipped until they are back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from groundplane.backends.nats.address import Address
from groundplane.backends.nats.errors import not_connected
from groundplane.backends.nats.link import Link, LinkStatistics
from groundplane.core.errors import GroundplaneError, InvalidArgument
from groundplane.core.pools import PoolState, announce

SIZE_MAX = 64


class Pool:
    """`async with await Pool.open(address, size=2) as pool: await pool.link().request(…)`"""

    def __init__(self, address: Address, links: list[Link]) -> None:
        self._address = address
        self._links = links
        self._at = -1
        announce(self)

    @classmethod
    async def open(cls, address: Address, *, size: int = 1, name: str = "groundplane") -> Pool:
        """So many links, or the error of the first that cannot be opened (`Link.open`), with none left open."""
        if not 1 <= size <= SIZE_MAX:
            raise InvalidArgument(f"size: {size!r} is not from 1 to {SIZE_MAX}")
        links: dict[int, Link] = {}

        async def add(number: int) -> None:
            links[number] = await Link.open(address, name=f"{name}-{number}" if size > 1 else name)

        try:
            ended = await asyncio.gather(*map(add, range(1, size + 1)), return_exceptions=True)
            for failure in filter(None, ended):
                raise failure
        except BaseException:  # cancelled too
            await asyncio.gather(*(link.aclose() for link in links.values()))
            raise
        return cls(address, [links[number] for number in sorted(links)])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Pool {self._address.masked()} {sum(link.is_connected for link in self._links)} of {len(self._links)}>"

    @property
    def links(self) -> tuple[Link, ...]:
        """All of them."""
        return tuple(self._links)

    def link(self) -> Link:
        """The next one that is connected. `unavailable` (`not_connected`) where none is, `closed` after closing."""
        for _ in self._links:
            self._at = (self._at + 1) % len(self._links)
            link = self._links[self._at]
            if link.is_connected:
                return link
        why: GroundplaneError | None = self._links[self._at].error
        if self._links[self._at].closed:
            self._links[self._at].check_open()
        raise not_connected(self._address.masked(), why)

    async def drain(self, timeout_s: float = 5.0) -> None:
        """`Link.drain` of all."""
        await asyncio.gather(*(link.drain(timeout_s) for link in self._links))

    async def aclose(self) -> None:
        """Close all, at once. Idempotent, ≤ 3 s."""
        await asyncio.gather(*(link.aclose() for link in self._links))

    def statistics(self) -> list[LinkStatistics]:
        """Of each link."""
        return [link.statistics() for link in self._links]

    def pools(self) -> Iterable[PoolState]:
        """For `core.pools`: connected links that have requests under way, and that have none."""
        states = [one for one in self.statistics() if one.connected]
        busy = sum(1 for one in states if one.requests)
        if any(not link.closed for link in self._links):
            waiting = sum(one.requests for one in states)
            yield PoolState(
                backend="nats",
                in_use=busy,
                idle=len(states) - busy,
                waiting=waiting,
                size_max=len(self._links),
                reconnects=sum(one.reconnects for one in self.statistics()),
            )
