"""The envelope: the one message shape of the mesh. It carries its own route, so no orchestrator is in the path.

On a queue it is a MessagePack map with the field names below (JSON is accepted); unknown fields are ignored, a change
that an older reader must not ignore raises `version`. Version 1 is pinned by golden bytes in `tests/wire`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from groundplane.core import codec
from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import InvalidArgument
from groundplane.core.ids import child_id, new_id

HAPPY_END = "happy-end"
ERROR_END = "error-end"
VERSION = 1


class Route(msgspec.Struct, frozen=True):
    """The actors in order, and the index of the one whose turn it is. What lies before `current` never changes."""

    actors: list[str]
    current: int = 0

    @property
    def actor(self) -> str | None:
        """The actor whose turn it is; None past the end."""
        return self.actors[self.current] if 0 <= self.current < len(self.actors) else None

    @property
    def past(self) -> list[str]:
        """The actors that have handled it, and the one whose turn it is."""
        return self.actors[: self.current + 1]

    @property
    def future(self) -> list[str]:
        """The actors that are still to come."""
        return self.actors[self.current + 1 :]

    def advanced(self) -> Route:
        """The route one hop on."""
        return Route(self.actors, self.current + 1)


class Claim(msgspec.Struct, frozen=True):
    """A claim check: the payload lies in blobs under `key`; `size` in bytes, `checksum` is SHA-256 in hex, in codec
    MessagePack.
    """

    key: str
    size: int
    checksum: str


class Branch(msgspec.Struct, frozen=True):
    """Which child of a fan-out this is: `index` of `total` children that `parent_id` made at `hop` (what a join
    groups by).
    """

    parent_id: str
    hop: int
    index: int
    total: int


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """id, route, headers, payload, attempt, deadline.

    `attempt` counts explicit retries, 1-based; the queue adds crashes. `headers` carry trace context, the tool,
    the per-job callback token. `branches` is the stack of fan-outs that this envelope is inside, outermost first.
    Times are Unix milliseconds. `claim` stands for a payload over the inline limit; `payload` is then None.
    """

    __groundplane__: ClassVar[str] = "envelope"

    id: str
    route: Route
    payload: Any = None
    headers: dict[str, Any] = {}
    attempt: int = 1
    created_at: int
    parent_id: str | None = None
    root_id: str | None = None
    job_id: str | None = None
    deadline_at: int | None = None
    claim: Claim | None = None
    branches: list[Branch] = []
    error: dict[str, Any] | None = None
    aborted: bool = False
    version: int = VERSION

    @classmethod
    def new(
        cls,
        actors: list[str],
        payload: Any = None,
        *,
        headers: Mapping[str, Any] | None = None,
        job_id: str | None = None,
        deadline_at: int | None = None,
        envelope_id: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Envelope:
        """The first envelope of a route."""
        if not actors:
            raise InvalidArgument("route: [] is empty; name at least one actor", reason="route_error")
        identifier = envelope_id or new_id()
        return cls(
            id=identifier,
            root_id=identifier,
            route=Route(list(actors)),
            payload=payload,
            headers=dict(headers or {}),
            created_at=clock.now_ms(),
            job_id=job_id,
            deadline_at=deadline_at,
        )

    def child(self, index: int, total: int, payload: Any, route: Route | None = None) -> Envelope:
        """Child `index` of `total` at the present hop: a deterministic id, the route one hop on."""
        branch = Branch(self.id, self.route.current, index, total)
        return msgspec.structs.replace(
            self,
            id=child_id(self.id, self.route.current, index),
            parent_id=self.id,
            root_id=self.root_id or self.id,
            route=route or self.route.advanced(),
            payload=payload,
            claim=None,
            attempt=1,
            branches=[*self.branches, branch],
        )

    def to_bytes(self) -> bytes:
        """The envelope as MessagePack."""
        return codec.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Envelope:
        """The envelope in `data`, MessagePack or JSON; else `InvalidArgument` with reason `msg_parsing_error`."""
        envelope = codec.decode(data, cls)
        if envelope.version > VERSION:
            raise InvalidArgument(
                f"version: {envelope.version!r} of the envelope is newer than {VERSION}; upgrade Groundplane here",
                reason="msg_parsing_error",
            )
        if not 0 <= envelope.route.current <= len(envelope.route.actors):
            raise InvalidArgument(
                f"route.current: {envelope.route.current!r} is outside of {len(envelope.route.actors)} actors",
                reason="route_error",
            )
        return envelope
