"""Names and durations: what is accepted, and errors that begin with the field and show the value."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.core.durations import parse_duration
from groundplane.core.errors import InvalidArgument
from groundplane.core.names import check_name, did_you_mean


@pytest.mark.parametrize("name", ["a", "0", "add_five", "a.b-c", "A" * 128])
def test_a_name_is_letters_digits_dots_dashes_underscores(name: str) -> None:
    assert check_name("queue", name) == name


@pytest.mark.parametrize("name", ["", ".a", "a.", "-a", "_a", "a b", "a/b", "ä", "A" * 129, "a\n", None, 3, b"a"])
def test_what_is_no_name_is_refused_with_the_field_and_the_value(name: object) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_name("queue", name)
    assert caught.value.message.startswith("queue: ")
    assert repr(name) in caught.value.message


def test_the_nearest_known_name_is_suggested_and_nothing_far_off() -> None:
    assert did_you_mean("doubel", ["double", "add_five"]) == "; did you mean 'double'?"
    assert did_you_mean("xyz", ["double", "add_five"]) == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("250ms", 0.25), ("1.5m", 90), ("1h30m", 5400), ("2d", 172800), (5, 5), (0.1, 0.1),
     (" 10s ", 10), ("1H", 3600)],
)  # fmt: skip
def test_a_duration_is_seconds_or_parts_with_units(text: float | str, seconds: float) -> None:
    assert parse_duration("timeout", text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "0", 0, -1, "-5s", "5 apples", "s", "1h 30m", "nan", "inf", math.inf, math.nan, True, "1e400"]
)
def test_what_is_no_positive_finite_duration_is_refused(text: float | str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_duration("timeout", text)
    assert caught.value.message.startswith("timeout: ")
    assert repr(text) in caught.value.message


@given(st.integers(1, 10**6), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_a_duration_with_one_unit_is_its_number_times_the_unit(number: int, unit: str) -> None:
    factor = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    assert parse_duration("t", f"{number}{unit}") == pytest.approx(number * factor)
