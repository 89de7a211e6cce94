"""What one piece of work asks of the bus: calls, events, commands and jobs, with ids that its repetition gives again.

The same work, handed out once more after a crash or a failure, sends the same messages; the bus drops a repeated id for
two minutes, and the store of jobs a repeated key for as long as it keeps the job. An id is made of the work, of what is
sent, and of how often the work has sent exactly that: so what differs is never taken for a repeat, whatever the order.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from groundplane.bus import wire
from groundplane.bus.presence import Select
from groundplane.bus.sending import check_arguments, deadline
from groundplane.bus.subjects import two_parts
from groundplane.core.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unsupported
from groundplane.core.ids import message_id

if TYPE_CHECKING:
    from groundplane.bus.client import Bus

T = TypeVar("T")

IDEMPOTENCY_KEY = "idempotency-key"
"""Header of a request: the same at every attempt of the work that makes it."""
DIFFERENT_MAX = 100_000
"""Different messages of one piece of work."""


class JobStarter(Protocol):
    """Starts jobs for handlers of the bus."""

    async def start(
        self, tool: str, arguments: Mapping[str, Any], *, idempotency_key: str, timeout_s: float | None
    ) -> str:
        """Create the job of a tool durably, or find the one that has the key; its id. Concurrent. Raises `not_found`
        (`tool_not_found`), `invalid_argument` that names the argument, `conflict` (`idempotency_mismatch`).
        """
        ...


class Calls:
    """The bus as one piece of work sees it. `scope` names the work; it is the same whenever the work is repeated. All
    of it ends at `until`, by the loop's clock.
    """

    def __init__(self, bus: Bus, scope: str, until: float | None = None) -> None:
        self._bus = bus
        self._scope = scope
        self._until = until
        self._sent: dict[str, int] = {}
        self._failed: dict[str, list[int]] = {}

    async def call(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = wire.RPC_TIMEOUT_S,
        select: Select = "round_robin",
        key: str | None = None,
        instance: str | None = None,
    ) -> Any:
        """Call `service.method` and return its result, as `Bus.request` does. Never repeated by itself; the method sees
        the same `idempotency_key` whenever this work calls it so again.
        """
        service, method = two_parts("name", name, "service.method")
        with self._named("call", [name, params], "") as own:
            request = self._bus.request(
                service, method, params, timeout_s=timeout_s, select=select, key=key, instance=instance,
                headers={IDEMPOTENCY_KEY: own},
            )  # fmt: skip
            return await self._in_time(name, request)

    async def publish(self, name: str, payload: Any = None, *, version: str = "1.0", event_id: str = "") -> str:
        """Publish the event `domain.type`; durable when it returns. Its id, by which repeats within two minutes are
        dropped: one of your own, or the same as when this work published the very same before.
        """
        domain, event_type = two_parts("name", name, "domain.type", more=True)
        with self._named("publish", [name, version, payload], event_id) as own:
            publishing = self._bus.publish(domain, event_type, payload, version=version, event_id=own)
            return await self._in_time(name, publishing)

    async def send(
        self,
        name: str,
        payload: Mapping[str, Any] | None = None,
        *,
        priority: wire.PriorityName = "normal",
        max_retries: int = 3,
        timeout_s: float = wire.COMMAND_TIMEOUT_S,
        command_id: str = "",
    ) -> str:
        """Send the command `service.command`; durable when it returns. Its id, as that of `publish`."""
        service, command = two_parts("name", name, "service.command")
        with self._named("send", [name, payload], command_id) as own:
            sending = self._bus.send(
                service, command, payload, priority=priority, max_retries=max_retries, timeout_s=timeout_s,
                command_id=own,
            )  # fmt: skip
            return (await self._in_time(name, sending)).command_id

    async def start_job(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
    ) -> str:
        """Start a job of a tool of the App, in the trace of this work; durable when it returns. Its id.

        With the key, one of your own or made as the id of `publish` is, the job is started once, for as long as it is
        kept. `timeout_s` is the tool's by default; this work's deadline does not bound it. Raises `not_found`
        (`tool_not_found`), `invalid_argument`, and `unsupported` where this process starts no jobs.
        """
        starter = self._bus.job_starter
        if starter is None:
            raise Unsupported("start_job: this process starts no jobs; serve the App by `groundplane dev` or `run`")
        given = {} if arguments is None else arguments
        check_arguments("arguments", given)
        with self._named("job", [tool, given], idempotency_key) as own:
            starting = starter.start(tool, given, idempotency_key=own, timeout_s=timeout_s)
            return await self._in_time(tool, starting)

    async def _in_time(self, name: str, asked: Awaitable[T]) -> T:
        token = deadline.set(deadline.get() if self._until is None else self._until)
        try:
            async with asyncio.timeout_at(self._until):
                return await asked
        except TimeoutError as error:
            raise DeadlineExceeded(f"{name}: this work's time was over before it was answered") from error
        finally:
            deadline.reset(token)

    @contextmanager
    def _named(self, kind: str, content: Any, own: str) -> Iterator[str]:
        """The id of something sent. What failed did not count: sent again, it is the same."""
        if own:
            yield own
            return
        told = f"{kind}/{_digest(content)}"
        if told not in self._sent and len(self._sent) >= DIFFERENT_MAX:
            raise ResourceExhausted(f"{kind}: more than {DIFFERENT_MAX} different messages of one piece of work")
        failed = self._failed.get(told)
        if failed:
            number = failed.pop()
        else:
            number = self._sent[told] = self._sent.get(told, 0) + 1
        try:
            yield message_id(f"{self._scope}/{told}/{number}")
        except BaseException:
            self._failed.setdefault(told, []).append(number)
            raise


def _digest(content: Any) -> str:
    try:
        data = msgspec.msgpack.encode(content, order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidArgument(f"payload: cannot be written: {error}", reason="msg_parsing_error") from error
    return hashlib.blake2b(data, digest_size=16).hexdigest()


__all__ = ["IDEMPOTENCY_KEY", "Calls", "JobStarter"]
