"""What can be deployed, and what is refused before anything is rendered."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest

from deployed import IMAGE, PASSWORD, SERVING, SETTINGS, description, plan
from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.core.secrets import Url
from groundplane.core.settings import Settings, load
from groundplane.deploy.document import to_yaml
from groundplane.deploy.plan import plan_of


def test_an_app_without_actors_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^app: 'deploy_app:app' declares no actors"):
        plan(actors=[])


@pytest.mark.parametrize("port", ["queues", "jobs", "ledger", "blobs"])
def test_storage_that_containers_cannot_share_is_refused_with_what_to_set(port: str) -> None:
    settings = msgspec.structs.replace(SETTINGS, **{port: Url("embedded://")})
    with pytest.raises(InvalidArgument) as caught:
        plan(settings)
    assert caught.value.message.startswith(f"{port}: 'embedded://' is a folder of one machine")
    assert f"set GROUNDPLANE_{port.upper()}_URL=" in caught.value.message
    assert PASSWORD not in caught.value.message


@pytest.mark.parametrize("port", ["kv", "bus"])
def test_an_app_that_serves_something_needs_keys_and_a_bus_that_are_shared(port: str) -> None:
    settings = msgspec.structs.replace(SERVING, **{port: Url("embedded://")})
    with pytest.raises(InvalidArgument, match=f"^{port}: 'embedded://' .* set GROUNDPLANE_{port.upper()}_URL=nats://"):
        plan(settings, serves=True)
    assert plan(SERVING, serves=True, actors=[]).serves


def test_each_port_that_is_embedded_is_named_at_once() -> None:
    with pytest.raises(InvalidArgument) as caught:
        plan_of(app="app:app", image=IMAGE, actors=description().actors.values(), settings=Settings(), routes={})
    for port in ("QUEUES", "JOBS", "LEDGER", "BLOBS"):
        assert f"GROUNDPLANE_{port}_URL=" in caught.value.message


@pytest.mark.parametrize(
    "wrong",
    [{"gateway_replicas": 0}, {"replicas_min": -1}, {"replicas_max": 0}, {"backlog": 0},
     {"replicas_min": 5, "replicas_max": 4}],
)  # fmt: skip
def test_a_number_out_of_range_is_named_with_its_value(wrong: dict[str, Any]) -> None:
    field, value = list(wrong.items())[-1]
    with pytest.raises(InvalidArgument, match=f"^{field}: {value}"):
        plan(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"memory": "lots"}, {"memory": "0Mi"}, {"memory": "512 MB"}, {"cpu": "fast"}, {"cpu": "0"}, {"cpu": ""}]
)
def test_what_is_no_quantity_is_named_with_an_example(wrong: dict[str, Any]) -> None:
    field, value = next(iter(wrong.items()))
    with pytest.raises(InvalidArgument, match=f"^{field}: {value!r} is no quantity; write "):
        plan(**wrong)


@pytest.mark.parametrize("fine", [{"memory": "2Gi"}, {"memory": "100Mi"}, {"cpu": "1"}, {"cpu": "0.5"}, {"cpu": "50m"}])
def test_quantities_are_taken(fine: dict[str, Any]) -> None:
    assert [getattr(plan(**fine), field) for field in fine] == list(fine.values())


def test_a_stop_may_take_longer_than_the_grace() -> None:
    assert plan().stop_s > SETTINGS.grace_s
    assert plan(msgspec.structs.replace(SETTINGS, grace_s=90.5)).stop_s > 90.5


def test_settings_that_differ_from_the_defaults_are_shared_and_secrets_are_not() -> None:
    settings = msgspec.structs.replace(SETTINGS, hops_max=100, retention_jobs_s=86400.0, log_level="debug")
    environment = plan(settings).environment()
    assert environment["GROUNDPLANE_HOPS_MAX"] == "100"
    assert environment["GROUNDPLANE_RETENTION_JOBS"] == "86400"
    assert environment["GROUNDPLANE_LOG_LEVEL"] == "debug"
    assert "GROUNDPLANE_PAYLOAD_MAX" not in environment
    assert not any(name.endswith("_URL") for name in environment)


def test_settings_of_several_values_are_read_as_they_were() -> None:
    settings = msgspec.structs.replace(SETTINGS, scope_map=("agents=tools:*", "ops=operate"))
    assert load(environ=plan(settings).environment()).settings.scope_map == settings.scope_map


def test_without_pyyaml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(FailedPrecondition, match=r"groundplane\[gateway\]") as caught:
        to_yaml([{}])
    assert caught.value.reason == "missing_extra"
