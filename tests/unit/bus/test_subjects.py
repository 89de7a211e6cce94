"""Names, subjects and patterns: refused by field and value before anything is sent."""

from __future__ import annotations

import pytest

from groundplane.bus import subjects
from groundplane.core.errors import InvalidArgument


@pytest.mark.req("BUS-10.1")
@pytest.mark.parametrize("name", ["a", "Z9", "0", "a_b-c", "x" * 64])
def test_names_are_letters_digits_underscores_and_hyphens(name: str) -> None:
    assert subjects.check_token("service", name) == name


@pytest.mark.req("BUS-10.1")
@pytest.mark.parametrize("name", ["", "-a", "_a", "a.b", "a b", "ä", "x" * 65, "a\n", "*", ">", None, 7, ["a"]])
def test_anything_else_is_no_name_and_the_error_shows_it(name: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^service: ") as caught:
        subjects.check_token("service", name)  # type: ignore[arg-type]
    assert repr(name) in caught.value.message
    assert caught.value.reason == "bad_subject"


@pytest.mark.req("BUS-10.2", "BUS-10.3")
@pytest.mark.parametrize("pattern", ["events.orders.*", "events.*.created", "events.>", "events.orders.>", "a.b"])
def test_patterns_have_stars_for_one_name_and_a_trailing_rest(pattern: str) -> None:
    assert subjects.check_pattern("pattern", pattern) == pattern


@pytest.mark.req("BUS-10.3")
@pytest.mark.parametrize(
    "pattern", ["", "*", ">", "*.*", "*.>", "a..b", ".a", "a.", "a.b*", "a.*b.c", "a.>.b", "a.b>", "a b.c", "a" * 256]
)
def test_empty_parts_bare_wildcards_and_wildcards_inside_a_part_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^pattern: "):
        subjects.check_pattern("pattern", pattern)


@pytest.mark.req("BUS-10.3")
@pytest.mark.parametrize("subject", ["events.*.a", "events.>", "*", "events..a", "", "events.a b"])
def test_nothing_is_published_on_a_pattern(subject: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^subject: "):
        subjects.check_subject("subject", subject)


@pytest.mark.req("BUS-10.2")
@pytest.mark.parametrize(
    "pattern, subject, fits",
    [
        ("events.orders.*", "events.orders.created", True),
        ("events.orders.*", "events.orders.created.eu", False),
        ("events.orders.*", "events.orders", False),
        ("events.orders.>", "events.orders.created.eu", True),
        ("events.orders.>", "events.orders", False),
        ("events.*.created", "events.orders.created", True),
        ("events.*.created", "events.orders.deleted", False),
        ("a.b", "a.b", True),
        ("a.b", "a.bc", False),
    ],
)
def test_a_star_is_one_name_and_the_rest_at_least_one(pattern: str, subject: str, fits: bool) -> None:
    assert subjects.matches(pattern, subject) is fits
    assert subjects.overlap(pattern, subject) is fits


@pytest.mark.parametrize(
    "one, other, meet",
    [
        ("a.*", "*.b", True),
        ("a.>", "a.b.c", True),
        ("a.*", "a.b.c", False),
        ("a.b.>", "a.>", True),
        ("a.*", "b.*", False),
    ],
)
def test_patterns_overlap_where_a_subject_fits_both(one: str, other: str, meet: bool) -> None:
    assert subjects.overlap(one, other) is meet
    assert subjects.overlap(other, one) is meet


@pytest.mark.parametrize(
    "subject, store",
    [
        ("events.a.b", "events"),
        ("events.*.b", "events"),
        ("commands.a.b", "commands"),
        ("commands.callback.x", "results"),
        ("commands.cancel.x", "results"),
    ],
)
def test_what_is_durable_is_told_by_its_subject(subject: str, store: str) -> None:
    assert subjects.store_of(subject) == store


@pytest.mark.parametrize("subject", ["rpc.a.b", "commands.progress.x", "control.who.a", "x"])
def test_the_rest_is_not_durable(subject: str) -> None:
    with pytest.raises(InvalidArgument, match="is not durable"):
        subjects.store_of(subject)


def test_services_of_commands_are_not_named_like_subjects_of_the_bus() -> None:
    assert subjects.check_service("service", "reports") == "reports"
    with pytest.raises(InvalidArgument, match="stands for subjects of the bus"):
        subjects.check_service("service", "callback")
