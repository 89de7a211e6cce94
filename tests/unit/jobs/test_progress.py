"""The formula of progress."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.jobs import progress

_hops = st.integers(min_value=1, max_value=64)
_weights = st.floats(min_value=0, max_value=100)


@pytest.mark.req("JOB-05.1", "JOB-05.2")
@pytest.mark.parametrize(
    ("hops", "wanted"),
    [(1, [10, 50, 50]), (2, [5, 25, 50, 55, 75, 75]), (4, [2.5, 12.5, 25, 27.5, 37.5, 50, 52.5, 62.5, 75, 77.5])],
)
def test_the_checkpoints_of_a_route(hops: int, wanted: list[float]) -> None:
    reports = [(hop, weight) for hop in range(hops) for weight in (10, 50, 100)]
    found = [progress.of_branch(hop, hops, weight) for hop, weight in reports][: len(wanted)]
    assert found == pytest.approx(wanted)


@pytest.mark.req("JOB-05.1")
@pytest.mark.parametrize(("percent", "weight"), [(0, 10), (50, 55), (100, 100), (-5, 10), (400, 100)])
def test_the_weight_inside_a_handler(percent: float, weight: float) -> None:
    assert progress.inside_handler(percent) == pytest.approx(weight)


@pytest.mark.req("JOB-05.1")
@given(_hops, st.integers(min_value=-3, max_value=99), _weights)
def test_a_report_is_never_100(hops: int, hop: int, weight: float) -> None:
    assert 0 <= progress.of_branch(hop, hops, weight) < 100


@pytest.mark.req("JOB-05.3")
@given(_hops, st.data())
def test_a_later_report_of_a_route_is_never_lower(hops: int, data: st.DataObject) -> None:
    hop = data.draw(st.integers(min_value=0, max_value=hops - 1))
    first, second = sorted((data.draw(_weights), data.draw(_weights)))
    if second < 100:
        assert progress.of_branch(hop, hops, first) <= progress.of_branch(hop, hops, second)
    if hop + 1 < hops:
        assert progress.of_branch(hop, hops, 100) <= progress.of_branch(hop + 1, hops, 10)


@pytest.mark.req("JOB-05.5")
@given(_hops, st.data())
def test_steps_count_the_actors_that_completed(hops: int, data: st.DataObject) -> None:
    hop = data.draw(st.integers(min_value=0, max_value=hops - 1))
    assert progress.steps(hop, hops, 10) == progress.steps(hop, hops, 99.9) == hop
    assert progress.steps(hop, hops, 100) == hop + 1
    if hop + 1 < hops:
        assert progress.steps_of_mean(progress.of_branch(hop, hops, 100), hops) == hop + 1
    assert progress.steps_of_mean(progress.of_branch(hop, hops, 50), hops) == hop


@pytest.mark.req("JOB-12.3")
@given(st.lists(st.tuples(st.integers(0, 4), _weights), max_size=40))
def test_the_mean_that_is_kept_is_the_mean_that_is_counted(changes: list[tuple[int, float]]) -> None:
    children, mean = [0.0] * 5, 0.0
    for child, value in changes:
        mean = progress.mean_after(mean, children[child], value, 5)
        children[child] = value
        assert mean == pytest.approx(sum(children) / 5, abs=1e-6)
