"""What the role services is told by its environment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from groundplane.app import App
from groundplane.cli.services_process import _admin, _pairs
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


@pytest.mark.req("LEAD-05.2")
def test_a_service_tells_of_the_election_of_its_name_else_of_that_which_guards_its_handlers() -> None:
    app = App("desk")
    pricing, desk = app.single_active("pricing"), app.single_active("desk")

    async def handler() -> None:
        return

    app.rpc("quotes.get")(handler)
    app.rpc("quotes.set")(pricing(handler))
    app.rpc("desk.place")(pricing(handler))
    app.command("ledger.book")(desk(handler))
    app.rpc("free.get")(handler)
    leaderships: Any = [SimpleNamespace(name=name) for name in ("pricing", "desk")]
    known: Any = [SimpleNamespace(service_name=name) for name in ("quotes", "desk", "ledger", "free")]
    told = {each.service_name: leadership.name for leadership, each in _pairs(app, leaderships, known)}
    assert told == {"quotes": "pricing", "desk": "desk", "ledger": "desk"}
    only = {each.service_name: leadership.name for leadership, each in _pairs(app, leaderships[:1], known)}
    assert only == dict.fromkeys(("quotes", "desk", "ledger", "free"), "pricing")
