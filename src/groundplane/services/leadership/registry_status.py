"""Who is active stands in the registry of services, beside how each instance is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from groundplane.core.errors import Closed, GroundplaneError
from groundplane.services.leadership.election import ElectionEvent
from groundplane.services.leadership.leadership import Leadership
from groundplane.services.port import ActiveStatus
from groundplane.services.registration import Registration
from groundplane.telemetry.logs import get_logger

_log = get_logger("leadership")


@asynccontextmanager
async def registered(leadership: Leadership, registration: Registration) -> AsyncIterator[None]:
    """As long as the block runs the instance's record says ACTIVE or STANDBY, and of which election.

    It follows what this member knows: after a crash the record says ACTIVE until it expires, so ask the instance (it
    answers `not_active`), or `leadership.leader()`, where it matters. A write that fails is told by the next heartbeat.
    """
    changed = asyncio.Event()

    def heard(event: ElectionEvent) -> None:
        changed.set()

    async def follow() -> None:
        told: bool | None = None
        while True:
            changed.clear()
            active = leadership.is_active
            if active is not told:
                await _tell(leadership.name, registration, active)
                told = active
            else:
                await changed.wait()

    end_listening = leadership.listen(heard)
    task = asyncio.create_task(follow(), name=f"leadership {leadership.name}: registry")
    try:
        yield
    finally:
        end_listening()
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(ended, Exception) and not isinstance(ended, Closed):
            raise ended


async def _tell(group: str, registration: Registration, active: bool) -> None:
    status: ActiveStatus = "ACTIVE" if active else "STANDBY"
    try:
        await registration.set_single_active(group, status)
    except Closed:
        raise
    except GroundplaneError as error:
        _log.warning("status_not_told_yet", name=group, status=status, error=error.message)
