"""Records of the registry, their names and bounds, and the summary that is made of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.services import records
from groundplane.services.port import Instance, Status
from groundplane.services.records import Definition
from groundplane.services.settings import DiscoverySettings, RegistrationSettings
from groundplane.services.summary import summary
from unit.services.scripted_source import instance

WHOLE = Instance(
    service_name="quotes",
    instance_id="host-1",
    version="1.4.0",
    status=Status.STANDBY,
    last_heartbeat="2026-11-22T15:00:00.250Z",
    sticky_active_group="pricing",
    sticky_active_status="STANDBY",
    metadata={"zone": "eu-1", "weight": 3},
    registration_id="0190f3c2-7e1a-7c7b-8a53-3f6b8d0c1a2e",
)
BYTES = (
    b'{"serviceName":"quotes","instanceId":"host-1","version":"1.4.0","status":"STANDBY",'
    b'"lastHeartbeat":"2026-11-22T15:00:00.250Z","stickyActiveGroup":"pricing","stickyActiveStatus":"STANDBY",'
    b'"metadata":{"zone":"eu-1","weight":3},"registrationId":"0190f3c2-7e1a-7c7b-8a53-3f6b8d0c1a2e","schemaVersion":1}'
)
KEY = "instances.quotes.host-1"


@pytest.mark.req("SVC-01.5")
def test_a_record_is_json_in_camel_case() -> None:
    assert records.encode(WHOLE) == BYTES
    assert records.decode_instance(KEY, BYTES) == WHOLE
    assert records.instance_key("quotes", "host-1") == KEY


@pytest.mark.req("SVC-01.5")
def test_a_record_of_another_program_needs_names_alone_and_may_say_more() -> None:
    found = records.decode_instance(KEY, b'{"serviceName":"quotes","instanceId":"host-1","color":"blue"}')
    assert (found.status, found.version, found.metadata, found.last_heartbeat) == (Status.ACTIVE, "", {}, None)


@pytest.mark.req("SVC-01.5")
@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"serviceName":"quotes"}',
        b'{"serviceName":"orders","instanceId":"host-1"}',
        b'{"serviceName":"quotes","instanceId":"host-1","status":"TIRED"}',
        b'{"serviceName":"quotes","instanceId":"host-1","metadata":[]}',
    ],
)
def test_what_is_no_record_of_its_key_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        records.decode_instance(KEY, value)
    assert caught.value.reason == "msg_parsing_error"


@pytest.mark.req("SVC-01.5")
@pytest.mark.parametrize("key", ["instances.quotes", "instances.a.b.c", "definitions.quotes", "other"])
def test_other_keys_are_no_instances(key: str) -> None:
    assert records.names_of(key) is None


@pytest.mark.req("SVC-05")
@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("serviceName", {"service_name": "a.b"}),
        ("serviceName", {"service_name": ""}),
        ("version", {"version": "1" * 65}),
        ("version", {"version": "1\n"}),
        ("owner", {"owner": "o" * 2001}),
        ("description", {"description": "d" * 2001}),
        ("metadata", {"metadata": {"blob": "x" * 70_000}}),
        ("metadata", {"metadata": {"number": float("nan")}}),
        ("metadata", {"metadata": ["a"]}),
    ],
)
def test_a_definition_that_cannot_be_stored_is_refused_by_field(field: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: ") as caught:
        records.checked(Definition(**{"service_name": "quotes", **given}))
    assert caught.value.details["field"] == field


@pytest.mark.req("SVC-05")
def test_a_definition_is_json_in_camel_case() -> None:
    stored = json.loads(records.encode(Definition(service_name="quotes", owner="team-a", created_at="t")))
    assert stored == {
        "serviceName": "quotes", "owner": "team-a", "description": "", "version": "", "metadata": {},
        "createdAt": "t", "updatedAt": "", "schemaVersion": 1,
    }  # fmt: skip


@pytest.mark.req("SVC-01.1")
def test_settings_have_the_promised_defaults() -> None:
    settings = RegistrationSettings()
    assert (settings.ttl_s, settings.heartbeat_s, settings.failures_max) == (30, 10, 3)


@pytest.mark.req("SVC-03.3")
def test_the_cache_has_the_promised_defaults() -> None:
    assert (DiscoverySettings().cache_s, DiscoverySettings().cache_entries) == (10, 1000)


@pytest.mark.parametrize(
    ("kind", "field", "given"),
    [
        (RegistrationSettings, "ttl_s", {"ttl_s": 0}),
        (RegistrationSettings, "heartbeat_s", {"heartbeat_s": 16.0}),
        (RegistrationSettings, "heartbeat_s", {"heartbeat_s": float("nan")}),
        (RegistrationSettings, "failures_max", {"failures_max": 0}),
        (RegistrationSettings, "readiness_s", {"readiness_s": True}),
        (DiscoverySettings, "cache_s", {"cache_s": -1}),
        (DiscoverySettings, "cache_entries", {"cache_entries": 1.5}),
    ],
)
def test_settings_that_cannot_work_are_refused_by_field(kind: type, field: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        kind(**given)


@pytest.mark.req("SVC-05")
def test_the_summary_says_how_each_service_is() -> None:
    found = summary(
        [
            instance("well", "a"),
            instance("well", "b", Status.STANDBY),
            instance("well", "c", Status.SHUTDOWN),
            instance("half", "a"),
            instance("half", "b", Status.UNHEALTHY),
            instance("ill", "a", Status.UNHEALTHY),
        ],
        defined=["well", "missing"],
    )
    assert {one.service_name: one.health for one in found.details} == {
        "half": "degraded",
        "ill": "down",
        "missing": "absent",
        "well": "healthy",
    }
    assert (found.services, found.instances, found.healthy) == (4, 6, 3)
    assert found.by_health == {"healthy": 1, "degraded": 1, "down": 1, "absent": 1}
    assert found.by_status == {"ACTIVE": 2, "STANDBY": 1, "UNHEALTHY": 2, "SHUTDOWN": 1}
