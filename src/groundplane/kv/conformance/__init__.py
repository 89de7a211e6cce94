"""The suite that every driver of key-value storage must pass. Subclass it with one fixture:

    from groundplane.kv import KV
    from groundplane.kv.conformance import KVConformance

    class TestMyKV(KVConformance):
        @pytest.fixture
        async def open_kv(self):
            place = …  # empty for each test
            return lambda **options: KV.open(place, **options)

`open_kv(bucket=…, history=…, ttl=…)` opens another handle on the same store; the tests open several at once. What a
driver does not declare as a capability must be refused with `unsupported`, and that is tested instead.
"""

from __future__ import annotations

from groundplane.kv.conformance.closing import ClosingConformance
from groundplane.kv.conformance.conditions import ConditionConformance
from groundplane.kv.conformance.expiring import ExpiryConformance
from groundplane.kv.conformance.fences import FenceConformance
from groundplane.kv.conformance.keys import KeyConformance
from groundplane.kv.conformance.kit import Kit
from groundplane.kv.conformance.values import ValueConformance
from groundplane.kv.conformance.watches import WatchConformance


class KVConformance(
    ValueConformance,
    KeyConformance,
    ConditionConformance,
    FenceConformance,
    ExpiryConformance,
    WatchConformance,
    ClosingConformance,
):
    """Everything: KV-01 to KV-17, and the fences of LEAD-02."""


__all__ = ["KVConformance", "Kit"]
