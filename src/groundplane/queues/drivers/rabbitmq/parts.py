"""What all consumers of a driver share."""

from __future__ import annotations

from groundplane.core.clock import Clock
from groundplane.queues.drivers.rabbitmq.link import Link
from groundplane.queues.drivers.rabbitmq.names import Names
from groundplane.queues.drivers.rabbitmq.registry import Registry
from groundplane.queues.drivers.rabbitmq.returns import Returns
from groundplane.queues.drivers.rabbitmq.sending import Sender


class Parts:
    """Made once by the driver."""

    def __init__(
        self, link: Link, names: Names, registry: Registry, returns: Returns, sender: Sender, clock: Clock
    ) -> None:
        self.link = link
        self.names = names
        self.registry = registry
        self.returns = returns
        self.sender = sender
        self.clock = clock
