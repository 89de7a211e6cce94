"""A look at the database of security."""

from __future__ import annotations

from collections.abc import Sequence

from groundplane.backends.postgres.diagnosis import look
from groundplane.core.diagnosis import Diagnose, Diagnosis
from groundplane.security.drivers.postgres import MIGRATIONS


async def diagnose(url: str, *, namespace: str, names: Sequence[str] = ()) -> Diagnosis:
    """See `core.diagnosis`."""
    return await look(url, [MIGRATIONS], field="security")


_: Diagnose = diagnose
