"""Which instance is chosen."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from groundplane.core.errors import InvalidArgument, Unavailable
from groundplane.services.port import Status
from groundplane.services.selection import Selector
from unit.services.scripted_source import instance

pytestmark = pytest.mark.req("SVC-03.2")

THREE = [instance("quotes", one) for one in "cab"]


def test_round_robin_gives_nine_calls_to_three_instances_three_each() -> None:
    selector = Selector()
    chosen = [selector.select("quotes", THREE).instance_id for _ in range(9)]
    assert chosen == ["a", "b", "c"] * 3


def test_round_robin_goes_on_in_turn_when_the_last_chosen_has_gone() -> None:
    selector = Selector()
    assert [selector.select("quotes", THREE).instance_id for _ in range(2)] == ["a", "b"]
    without_b = [one for one in THREE if one.instance_id != "b"]
    assert [selector.select("quotes", without_b).instance_id for _ in range(3)] == ["c", "a", "c"]


def test_turns_of_services_are_apart() -> None:
    selector = Selector()
    others = [instance("orders", one) for one in "ab"]
    chosen = [
        (selector.select("quotes", THREE).instance_id, selector.select("orders", others).instance_id) for _ in "123"
    ]
    assert chosen == [("a", "a"), ("b", "b"), ("c", "a")]


def test_random_reaches_every_instance() -> None:
    selector = Selector(random.Random(7))
    found = Counter(selector.select("quotes", THREE, "random").instance_id for _ in range(300))
    assert set(found) == {"a", "b", "c"}
    assert min(found.values()) > 60


def test_sticky_keeps_to_one_instance_and_moves_only_the_keys_of_an_instance_that_went() -> None:
    selector = Selector()
    keys = [f"customer-{n}" for n in range(300)]
    before = {key: selector.select("quotes", THREE, "sticky", key=key).instance_id for key in keys}
    assert before == {key: selector.select("quotes", THREE[::-1], "sticky", key=key).instance_id for key in keys}
    assert min(Counter(before.values()).values()) > 60
    left = [one for one in THREE if one.instance_id != "b"]
    after = {key: selector.select("quotes", left, "sticky", key=key).instance_id for key in keys}
    assert {key for key in keys if before[key] != after[key]} == {key for key in keys if before[key] == "b"}


def test_the_preferred_instance_is_chosen_while_it_is_healthy_and_round_robin_else() -> None:
    selector = Selector()
    assert {selector.select("quotes", THREE, "preferred", preferred="b").instance_id for _ in range(5)} == {"b"}
    ill = [one if one.instance_id != "b" else instance("quotes", "b", Status.UNHEALTHY) for one in THREE]
    assert [selector.select("quotes", ill, "preferred", preferred="b").instance_id for _ in range(2)] == ["a", "c"]


def test_a_standby_is_chosen_only_where_nobody_is_active() -> None:
    selector = Selector()
    standby = instance("quotes", "a", Status.STANDBY)
    active = instance("quotes", "z")
    assert {selector.select("quotes", [standby, active]).instance_id for _ in range(4)} == {"z"}
    assert selector.select("quotes", [standby]) is standby


@pytest.mark.parametrize(
    "found", [[], [instance("quotes", "a", Status.UNHEALTHY), instance("quotes", "b", Status.SHUTDOWN)]]
)
def test_without_a_healthy_instance_selection_is_unavailable(found: list) -> None:  # type: ignore[type-arg]
    with pytest.raises(Unavailable) as caught:
        Selector().select("quotes", found)
    assert caught.value.reason == "no_instance"
    assert caught.value.details == {"service": "quotes", "instances": len(found)}


@pytest.mark.parametrize(
    ("strategy", "options", "field"),
    [("stiky", {}, "strategy"), ("sticky", {}, "key"), ("preferred", {}, "preferred"), ("sticky", {"key": ""}, "key")],
)
def test_a_strategy_without_what_it_needs_is_refused(strategy: str, options: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        Selector().select("quotes", THREE, strategy, **options)  # type: ignore[arg-type]
