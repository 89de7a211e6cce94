"""What the role services is told by its environment."""

from __future__ import annotations

import pytest

from groundplane.cli.services_process import _admin
from groundplane.core.errors import InvalidArgument


def test_metrics_and_health_are_where_the_environment_says_else_on_the_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HOST", "PORT"):
        monkeypatch.delenv(f"GROUNDPLANE_ACTOR_ADMIN_{name}", raising=False)
    assert _admin() == ("127.0.0.1", 0)
    monkeypatch.setenv("GROUNDPLANE_ACTOR_ADMIN_HOST", "0.0.0.0")
    monkeypatch.setenv("GROUNDPLANE_ACTOR_ADMIN_PORT", "9090")
    assert _admin() == ("0.0.0.0", 9090)


@pytest.mark.parametrize("wrong", ["65536", "-1", "http", "9090/tcp"])
def test_a_port_that_is_none_is_refused_with_its_value(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("GROUNDPLANE_ACTOR_ADMIN_PORT", wrong)
    with pytest.raises(InvalidArgument, match=f"GROUNDPLANE_ACTOR_ADMIN_PORT: {wrong!r}"):
        _admin()
