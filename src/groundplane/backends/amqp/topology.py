"""What a channel asks the broker to create, look at and delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from groundplane.backends.amqp.methods import base, build, commands


class QueueState(NamedTuple):
    """What the broker answers to a declaration: messages that are ready (not those in flight), and consumers."""

    name: str
    ready: int
    consumers: int


class _Asks(Protocol):
    async def request(self, method: base.Frame, *replies: type[base.Frame]) -> Any: ...


class Topology:
    """The declarations of a `Channel`.

    Each may be called concurrently (the broker answers in order), waits at most `rpc_timeout_s`, and raises what the
    reply code means (`groundplane.backends.amqp.errors`). A refusal closes the channel: probe on one of your own.
    """

    async def declare_queue(
        self: _Asks,
        name: str = "",
        *,
        passive: bool = False,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> QueueState:
        """Create it, or find it the same. `passive` only looks: `not_found` where it is missing.

        An empty name lets the broker choose one. `queue_exists_with_other_arguments` where it was declared otherwise.
        """
        method = build(
            commands.Queue.Declare,
            queue=name,
            passive=passive,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            arguments=dict(arguments or {}),
        )
        answer = await self.request(method, commands.Queue.DeclareOk)
        return QueueState(answer.queue, answer.message_count, answer.consumer_count)

    async def delete_queue(self: _Asks, name: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Delete it with its messages; how many these were. A queue that is missing is no error (RabbitMQ's rule).

        Quorum queues know neither `if_unused` nor `if_empty`: the broker closes the whole connection (`unsupported`).
        """
        method = build(commands.Queue.Delete, queue=name, if_unused=if_unused, if_empty=if_empty)
        count: int = (await self.request(method, commands.Queue.DeleteOk)).message_count
        return count

    async def purge_queue(self: _Asks, name: str) -> int:
        """Drop the messages that are ready; how many these were."""
        answer = await self.request(build(commands.Queue.Purge, queue=name), commands.Queue.PurgeOk)
        count: int = answer.message_count
        return count

    async def bind_queue(
        self: _Asks, queue: str, exchange: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Let messages of the exchange reach the queue. Idempotent."""
        method = build(
            commands.Queue.Bind,
            queue=queue,
            exchange=exchange,
            routing_key=routing_key,
            arguments=dict(arguments or {}),
        )
        await self.request(method, commands.Queue.BindOk)

    async def unbind_queue(
        self: _Asks, queue: str, exchange: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Undo a binding. Idempotent."""
        method = build(
            commands.Queue.Unbind,
            queue=queue,
            exchange=exchange,
            routing_key=routing_key,
            arguments=dict(arguments or {}),
        )
        await self.request(method, commands.Queue.UnbindOk)

    async def declare_exchange(
        self: _Asks,
        name: str,
        kind: str = "direct",
        *,
        passive: bool = False,
        durable: bool = True,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Create it, or find it the same. `passive` only looks."""
        method = build(
            commands.Exchange.Declare,
            exchange=name,
            exchange_type=kind,
            passive=passive,
            durable=durable,
            auto_delete=auto_delete,
            internal=internal,
            arguments=dict(arguments or {}),
        )
        await self.request(method, commands.Exchange.DeclareOk)

    async def delete_exchange(self: _Asks, name: str, *, if_unused: bool = False) -> None:
        """Delete it; one that is missing is no error."""
        await self.request(
            build(commands.Exchange.Delete, exchange=name, if_unused=if_unused), commands.Exchange.DeleteOk
        )

    async def bind_exchange(self: _Asks, destination: str, source: str, routing_key: str = "") -> None:
        """Let messages of `source` reach the exchange `destination`. Idempotent."""
        method = build(commands.Exchange.Bind, destination=destination, source=source, routing_key=routing_key)
        await self.request(method, commands.Exchange.BindOk)

    async def qos(self: _Asks, prefetch: int) -> None:
        """At most `prefetch` (1 to 65,535) unsettled deliveries for each consumer that is started later."""
        await self.request(build(commands.Basic.Qos, prefetch_count=prefetch), commands.Basic.QosOk)
