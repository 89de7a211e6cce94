"""What a session's client said when it initialized is kept as it came."""

from __future__ import annotations

import pytest

from groundplane.gateway.mcp.session_records import Handshake


@pytest.mark.req("GATE-15.1", "GATE-11")
@pytest.mark.parametrize("odd", [2**80, -(2**80), "\ud800", 1.5, None, [{"\udfff": [2**64]}]])
def test_a_handshake_comes_back_with_whatever_a_client_put_into_it(odd: object) -> None:
    params = {"protocolVersion": "2025-11-25", "capabilities": {"experimental": {"x": {"y": odd}}}, "cursor": odd}
    kept = Handshake(params=params, version="2025-11-25", log_level="error")
    assert Handshake.from_bytes(kept.to_bytes()) == kept
