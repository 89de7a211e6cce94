"""The suite of key-value storage on the embedded driver, and what is that driver's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from groundplane.kv import KV
from groundplane.kv.conformance import KVConformance
from groundplane.kv.conformance.kit import OpenKV

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["thread", "inline"])
def open_kv(tmp_path: Path, request: pytest.FixtureRequest) -> OpenKV:
    return partial(KV.open, state=tmp_path, inline=request.param)


class TestEmbeddedKV(KVConformance):
    @pytest.fixture(params=[False, True], ids=["thread", "inline"])
    def open_kv(self, tmp_path: Path, request: pytest.FixtureRequest) -> OpenKV:
        return partial(KV.open, state=tmp_path, inline=request.param)
