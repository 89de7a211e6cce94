"""The suite that a driver of security must pass. Subclass it and give it two fixtures:

class TestMySecurity(SecurityConformance):
    @pytest.fixture
    async def security(self):
        async with Security.open("mine://…", namespace=unique) as security:  # an empty store for each test
            yield security

    @pytest.fixture
    async def replica(self, security):  # the same store, opened a second time
        …

The tests are asynchronous: run them with AnyIO's pytest plugin on asyncio.
"""

from __future__ import annotations

from groundplane.security.conformance.audit import AuditConformance
from groundplane.security.conformance.keys import KeyConformance
from groundplane.security.conformance.sessions import SessionConformance


class SecurityConformance(KeyConformance, AuditConformance, SessionConformance):
    """What every store of keys, audit entries, sessions and secrets does."""


__all__ = ["SecurityConformance"]
