"""What a connection listens to, restored on every server that it comes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from groundplane.backends.nats.errors import again
from groundplane.backends.nats.message import Message
from groundplane.core.errors import GroundplaneError

if TYPE_CHECKING:
    from groundplane.backends.nats.link import Link

OnMessage = Callable[[Message], None]


class Subscription:
    """One subscription. `error` is the server's refusal, if any; `failure` what its callback raised last."""

    __slots__ = ("_link", "error", "failure", "on_message", "queue", "sid", "subject")

    def __init__(self, link: Link, sid: int, subject: str, queue: str, on_message: OnMessage) -> None:
        self._link = link
        self.sid = sid
        self.subject = subject
        self.queue = queue
        self.on_message = on_message
        self.error: GroundplaneError | None = None
        self.failure: Exception | None = None

    def __repr__(self) -> str:
        return f"<Subscription {self.sid} {self.subject!r}{f' of {self.queue!r}' if self.queue else ''}>"

    async def confirmed(self, timeout_s: float | None = None) -> None:
        """Wait until the server listens for it; raises its refusal (`permission_denied`), or as `Link.flush`."""
        await self._link.flush(timeout_s)
        if self.error is not None:
            raise again(self.error)

    async def drain(self, timeout_s: float) -> None:
        """End it and hand out what the server had sent for it, within `timeout_s`."""
        await self._link.drain_one(self, timeout_s)

    def unsubscribe(self) -> None:
        """Hand out no more. Idempotent."""
        self._link.unsubscribe(self)

    def line(self) -> bytes:
        """The operation that subscribes."""
        group = f" {self.queue}" if self.queue else ""
        return f"SUB {self.subject}{group} {self.sid}\r\n".encode()
