"""The suite of key-value storage on NATS, and what is that driver's own."""

from __future__ import annotations

from functools import partial

import pytest

from groundplane.kv import KV
from groundplane.kv.conformance import KVConformance
from groundplane.kv.conformance.kit import OpenKV

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


class TestNatsKV(KVConformance):
    @pytest.fixture
    def open_kv(self, nats_url: str) -> OpenKV:
        return partial(KV.open, nats_url)
