"""The suite that every driver of the queues must pass. Subclass it with one fixture:

    from groundplane.queues import Queues
    from groundplane.queues.conformance import QueueConformance

    class TestMyQueue(QueueConformance):
        @pytest.fixture
        async def queues(self):
            async with MyDriver.open(…) as driver:
                yield Queues(driver)

Each test declares queues with names of its own. Override the hooks of `Kit` to have restarts, second clients and dying
consumers tested too; a hook that is not there is a skip that names it. What a driver does not declare as a capability
must be refused with `unsupported`, and that is tested instead.
"""

from __future__ import annotations

from groundplane.queues.conformance.closing import ClosingConformance
from groundplane.queues.conformance.consuming import ConsumingConformance
from groundplane.queues.conformance.dead import DeadLetterConformance
from groundplane.queues.conformance.faults import FaultConformance
from groundplane.queues.conformance.kit import Kit
from groundplane.queues.conformance.sending import SendingConformance


class QueueConformance(
    SendingConformance, ConsumingConformance, DeadLetterConformance, ClosingConformance, FaultConformance
):
    """Everything: QUEUE-01 to QUEUE-13."""


__all__ = ["Kit", "QueueConformance"]
