"""The retry policy: a pure function of the attempt."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.core.errors import InvalidArgument
from groundplane.core.retry import RetryPolicy

pytestmark = pytest.mark.req("MESH-09")


def test_the_defaults_try_once_and_back_off_from_one_second_by_two_up_to_a_minute() -> None:
    policy = RetryPolicy()
    assert (policy.attempts, policy.base_s, policy.factor, policy.cap_s, policy.jitter) == (1, 1.0, 2.0, 60.0, True)
    plain = RetryPolicy(jitter=False)
    assert [plain.delay_s(n) for n in (1, 2, 3, 6, 7, 8)] == [1, 2, 4, 32, 60, 60]


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_full_jitter_is_uniform_between_nothing_and_the_bound(attempt: int, chance: float) -> None:
    policy = RetryPolicy()
    bound = RetryPolicy(jitter=False).delay_s(attempt)
    delay = policy.delay_s(attempt, rand=lambda: chance)
    assert delay == pytest.approx(bound * chance)
    assert 0 <= delay <= 60


@pytest.mark.parametrize(
    ("field", "value"),
    [("attempts", 0), ("attempts", -1), ("attempts", True), ("attempts", 1.5), ("base_s", -1), ("base_s", math.nan),
     ("factor", 0.5), ("factor", math.inf), ("cap_s", -0.1)],
)  # fmt: skip
def test_a_policy_that_makes_no_sense_is_refused_by_its_field(field: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=f"^retry.{field}: {value!r}".replace("(", r"\(")):
        RetryPolicy(**{field: value})  # type: ignore[arg-type]


def test_non_retryable_types_are_found_by_ancestry_bare_or_qualified() -> None:
    policy = RetryPolicy(non_retryable=("LookupError", "shop.errors.Refused"))
    assert policy.refuses(["builtins.KeyError", "builtins.LookupError", "builtins.Exception"])
    assert policy.refuses(["shop.errors.CardRefused", "shop.errors.Refused"])
    assert not policy.refuses(["other.Refused", "builtins.Exception"])
    assert not RetryPolicy().refuses(["builtins.KeyError"])
