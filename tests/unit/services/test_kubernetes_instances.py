"""What EndpointSlices mean: slices merged, conditions, ports by name; what differs after a change or a new list."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from groundplane.backends.kubernetes.slices import Slice
from groundplane.services.drivers.kubernetes_instances import Key, View, merged
from groundplane.services.port import Instance, Status

pytestmark = pytest.mark.req("SVC-04")


def pod(name: str, address: str, uid: str = "", **conditions: bool | None) -> dict[str, Any]:
    target = {"kind": "Pod", "name": name, "uid": uid or f"uid-{name}"}
    return {"addresses": [address], "targetRef": target, "conditions": conditions}


def of(name: str, service: str, *endpoints: Any, ports: dict[str, int | None] | None = None, **labels: str) -> Slice:
    listed = [{"name": key, "port": port} for key, port in (ports or {"http": 80}).items()]
    return msgspec.convert(
        {
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service, **labels}},
            "addressType": "IPv4",
            "endpoints": list(endpoints) or None,
            "ports": listed,
        },
        Slice,
    )


def only(*slices: Slice) -> Instance:
    (found,) = merged(slices).values()
    return found


@pytest.mark.parametrize(
    "conditions, status",
    [
        ({}, Status.ACTIVE),
        ({"ready": True}, Status.ACTIVE),
        ({"ready": None, "serving": None, "terminating": None}, Status.ACTIVE),
        ({"ready": False}, Status.UNHEALTHY),
        ({"ready": False, "serving": True, "terminating": True}, Status.SHUTDOWN),
        ({"ready": False, "serving": False, "terminating": True}, Status.SHUTDOWN),
        ({"ready": True, "terminating": True}, Status.SHUTDOWN),  # of a service that publishes what is not ready
    ],
)
def test_conditions_are_a_status(conditions: dict[str, bool | None], status: Status) -> None:
    found = only(of("s", "shop", pod("a", "10.0.0.1", **conditions)))
    assert found.status is status
    assert found.metadata["terminating"] is bool(conditions.get("terminating"))
    assert found.metadata["serving"] is (conditions.get("serving") is not False)


def test_an_instance_has_its_addresses_ports_and_place() -> None:
    endpoint = pod("a", "10.0.0.1") | {"zone": "z1", "nodeName": "n1", "hostname": "a-0"}
    one = of("s", "shop", endpoint, ports={"http": 80, "": 9, "none": None}, **{"app.kubernetes.io/version": "1.2"})
    found = only(one)
    assert (found.service_name, found.instance_id, found.version) == ("shop", "a", "1.2")
    assert found.metadata == {
        "address": "10.0.0.1", "addresses": ["10.0.0.1"], "ports": {"": 9, "http": 80}, "ready": True, "serving": True,
        "terminating": False, "zone": "z1", "node": "n1", "hostname": "a-0", "kind": "Pod", "uid": "uid-a",
    }  # fmt: skip


def test_slices_of_one_service_are_merged_and_a_pod_of_two_families_is_one_instance() -> None:
    found = merged([
        of("shop-v6", "shop", pod("a", "fd00::1"), ports={"admin": 81}),
        of("shop-v4", "shop", pod("a", "10.0.0.1"), pod("b", "10.0.0.2")),
        of("other", "other", pod("a", "10.0.0.1")),
    ])  # fmt: skip
    assert set(found) == {Key("shop", "a"), Key("shop", "b"), Key("other", "a")}
    assert found[Key("shop", "a")].metadata["addresses"] == ["10.0.0.1", "fd00::1"]
    assert found[Key("shop", "a")].metadata["ports"] == {"admin": 81, "http": 80}


def test_of_a_pod_that_is_in_two_slices_the_better_condition_counts() -> None:
    stale, fresh = of("s1", "shop", pod("a", "10.0.0.1", ready=False)), of("s2", "shop", pod("a", "10.0.0.1"))
    assert only(stale, fresh).status is only(fresh, stale).status is Status.ACTIVE


def test_a_pod_that_was_made_again_under_its_name_does_not_keep_the_old_ones_address() -> None:
    old = of("s1", "shop", pod("a-0", "10.0.0.1", uid="1", ready=False, terminating=True), ports={"old": 1})
    new = of("s2", "shop", pod("a-0", "10.0.0.9", uid="2"))
    found = only(old, new)
    assert (found.status, found.metadata["addresses"], found.metadata["ports"]) == (
        Status.ACTIVE, ["10.0.0.9"], {"http": 80},
    )  # fmt: skip


def test_an_endpoint_without_an_object_behind_it_is_called_by_its_address() -> None:
    assert only(of("s", "shop", {"addresses": ["10.0.0.7"]})).instance_id == "10.0.0.7"


def test_slices_without_endpoints_or_without_a_service_have_no_instances() -> None:
    assert merged([of("s", "shop"), of("t", "", pod("a", "10.0.0.1"))]) == {}


def names(changes: list[tuple[Key, Instance | None]]) -> list[tuple[str, str, bool]]:
    return [(key.service, key.instance, instance is not None) for key, instance in changes]


def test_a_change_tells_what_differs_and_nothing_else() -> None:
    view = View()
    shop = of("s1", "shop", pod("a", "10.0.0.1"), pod("b", "10.0.0.2"))
    first = view.replace([shop, of("t", "other", pod("x", "1"))])
    assert names(first) == [("other", "x", True), ("shop", "a", True), ("shop", "b", True)]
    assert view.put(shop) == []
    assert names(view.put(of("s1", "shop", pod("a", "10.0.0.1"), pod("c", "10.0.0.3")))) == [
        ("shop", "c", True), ("shop", "b", False),
    ]  # fmt: skip
    assert view.put(of("s2", "shop", pod("c", "10.0.0.3"))) == []  # in two slices for a moment
    assert view.put(of("s1", "shop", pod("a", "10.0.0.1"))) == []
    assert names(view.drop("s2")) == [("shop", "c", False)]
    assert view.drop("s2") == []


def test_a_slice_that_is_given_to_another_service_leaves_the_first() -> None:
    view = View()
    view.replace([of("s", "shop", pod("a", "10.0.0.1"))])
    assert names(view.put(of("s", "mall", pod("a", "10.0.0.1")))) == [("mall", "a", True), ("shop", "a", False)]


def test_a_new_list_tells_what_came_went_and_changed_meanwhile() -> None:
    view = View()
    view.replace([of("s", "shop", pod("a", "1"), pod("b", "2"), pod("c", "3")), of("t", "gone", pod("x", "9"))])
    changes = view.replace([of("s9", "shop", pod("a", "1"), pod("b", "22")), of("n", "new", pod("y", "8"))])
    assert names(changes) == [
        ("gone", "x", False), ("new", "y", True), ("shop", "b", True), ("shop", "c", False),
    ]  # fmt: skip
    assert view.replace([of("s9", "shop", pod("a", "1"), pod("b", "22")), of("n", "new", pod("y", "8"))]) == []
