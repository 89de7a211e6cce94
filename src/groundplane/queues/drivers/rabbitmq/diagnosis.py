"""A look at the broker: who may log in, which queues were made otherwise, what the user may do, whether it takes
messages.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence

from groundplane.backends.amqp import Channel
from groundplane.core.diagnosis import Diagnose, Diagnosis
from groundplane.core.envelope import ERROR_END, HAPPY_END
from groundplane.core.errors import NotFound, PermissionDenied
from groundplane.queues.drivers.rabbitmq.driver import RabbitQueues
from groundplane.queues.drivers.rabbitmq.link import Session
from groundplane.queues.drivers.rabbitmq.names import EXCHANGE, Declared, Names


async def diagnose(url: str, *, namespace: str, names: Sequence[str] = ()) -> Diagnosis:
    """See `core.diagnosis`. Queues of these names, and those that were declared before, are compared with what would be
    declared; those that are not there are not made. A queue that ends with the connection is written to and read.
    """
    async with RabbitQueues.open(url, namespace=namespace) as driver:
        declared = [spec.name for spec in await driver.queues()]
        session = await driver.native.ready()
        own = Names(namespace, driver.native.address.options.get("exchange") or EXCHANGE)
        wanted = dict.fromkeys([*declared, *names, HAPPY_END, ERROR_END])
        await _compare(session, own, [*own.of_namespace(), *(one for name in wanted for one in own.of_queue(name))])
        await _try(session, own)
        server = session.consuming.server
    return Diagnosis(server=f"{server.product} {server.version}", stored=bool(declared))


async def _compare(session: Session, names: Names, wanted: Iterable[Declared]) -> None:
    """Declare again what is there: the broker refuses what was declared otherwise."""
    channel = await session.consuming.channel()
    try:
        for name, arguments in wanted:
            if await session.state(name) is not None:
                await channel.declare_queue(name, arguments=arguments)
    finally:
        await channel.aclose()


async def _try(session: Session, names: Names) -> None:
    """Make a queue of this connection's own, send to it, read from it."""
    channel = await session.publishing.channel(confirms=True)
    try:
        probe = f"{names.namespace}::doctor-{uuid.uuid4()}"
        await channel.declare_queue(probe, durable=False, exclusive=True, auto_delete=True)
        known = await _has_exchange(session, names.exchange)
        if known:
            await channel.bind_queue(probe, names.exchange, probe)
        try:
            await channel.publish(names.exchange if known else "", probe, b"doctor")
            await channel.get(probe)
        except PermissionDenied:
            if known:  # to the broker's own exchange, which stands in until there is ours, no right is needed
                raise
    finally:
        await channel.aclose()


async def _has_exchange(session: Session, name: str) -> bool:
    channel: Channel = await session.consuming.channel()
    try:
        await channel.declare_exchange(name, "direct", passive=True)
    except NotFound:
        return False
    finally:
        await channel.aclose()
    return True


_: Diagnose = diagnose
