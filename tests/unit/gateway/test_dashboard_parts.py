"""The parts of the dashboard that are pure: forms from schemas, the story of a job, rates from its log, shown text."""

from __future__ import annotations

from typing import Any

import pytest

from groundplane.core.errors import ErrorRecord
from groundplane.gateway.dashboard import forms, shown
from groundplane.gateway.dashboard.actors_pages import SPARK_HEIGHT, spark
from groundplane.gateway.dashboard.browser import local_path
from groundplane.gateway.dashboard.flow import BOUNDS, POINTS, STEP_S, Flow, Track, quantile
from groundplane.gateway.dashboard.story import CHILDREN_MAX, EVENTS_SHOWN, Story
from groundplane.gateway.problems import HTTPProblem
from groundplane.jobs.port import Job, JobEvent, JobState

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "note": {"type": "string", "default": "hi"},
        "count": {"type": "integer", "minimum": 1},
        "share": {"type": "number"},
        "sure": {"type": "boolean"},
        "mode": {"enum": ["fast", "deep"], "enumNames": ["Fast one", "Deep one"]},
        "level": {"type": "integer", "enum": [1, 2]},
        "tags": {"type": "array", "items": {"type": "string", "enum": ["a", "b", "c"]}},
        "rest": {"type": "object"},
        "mail": {"type": "string", "format": "email"},
        "plan": {"type": "string", "oneOf": [{"const": "s", "title": "Small"}, {"const": "l", "title": "Large"}]},
    },
    "required": ["count"],
}


def test_each_type_has_its_own_field_and_required_ones_come_first() -> None:
    made = {one["name"]: one for one in forms.fields(SCHEMA)}
    assert next(iter(made)) == "count"
    kinds = {name: one["kind"] for name, one in made.items()}
    assert kinds == {
        "count": "number", "note": "line", "share": "number", "sure": "choice", "mode": "choice", "level": "choice",
        "tags": "many", "rest": "json", "mail": "line", "plan": "choice",
    }  # fmt: skip
    assert made["mode"]["options"] == [("fast", "Fast one"), ("deep", "Deep one")]
    assert made["plan"]["options"] == [("s", "Small"), ("l", "Large")]
    assert made["sure"]["options"] == [("true", "yes"), ("false", "no")]
    assert (made["note"]["value"], made["count"]["least"], made["mail"]["input"]) == ("hi", 1, "email")


def test_what_a_form_sends_becomes_arguments_of_the_right_types_and_empty_fields_are_left_out() -> None:
    sent = {
        "_token": ["x"], "arg.note": ["1"], "arg.count": ["7"], "arg.share": ["0.5"], "arg.sure": ["false"],
        "arg.mode": ["deep"], "arg.level": ["2"], "arg.tags": ["a", "c"], "arg.rest": ['{"deep": [1]}'],
        "arg.mail": [""], "arg.unknown": ["x"],
    }  # fmt: skip
    assert forms.arguments(SCHEMA, sent) == {
        "note": "1", "count": 7, "share": 0.5, "sure": False, "mode": "deep", "level": 2, "tags": ["a", "c"],
        "rest": {"deep": [1]},
    }  # fmt: skip
    again = {one["name"]: one for one in forms.fields(SCHEMA, sent)}
    assert (again["count"]["value"], again["tags"]["values"]) == ("7", ["a", "c"])


def test_a_number_that_is_none_is_left_to_the_schema_and_broken_json_names_its_field() -> None:
    assert forms.arguments(SCHEMA, {"arg.count": ["many"]}) == {"count": "many"}
    with pytest.raises(HTTPProblem, match=r"rest: '\{' is not JSON") as caught:
        forms.arguments(SCHEMA, {"arg.rest": ["{"]})
    assert forms.problems(caught.value) == {"rest": caught.value.message}
    with pytest.raises(HTTPProblem, match="is not a JSON object"):
        forms.whole("[1]")


def _job(state: JobState, *, route: tuple[str, ...] = ("a", "b", "c"), **more: Any) -> Job:
    values = {"message": "", "actor": "", "steps_completed": 0, "total_steps": len(route), **more}
    return Job(job_id="j", tool="t", state=state, progress=10, created_at=0, updated_at=0, route=list(route), **values)


def _told(number: int, kind: str = "progress", **data: Any) -> JobEvent:
    return JobEvent(id=number, job_id="j", kind=kind, data={"envelope_id": "e", **data}, created_at=number * 1000)


def _hop(number: int, hop: int, status: str, actor: str, envelope: str = "e") -> JobEvent:
    return _told(number, hop=hop, status=status, actor=actor, envelope_id=envelope)


def test_the_route_is_drawn_with_what_was_passed_where_it_is_and_what_is_to_come() -> None:
    story = Story()
    for event in (_hop(1, 0, "received", "a"), _hop(2, 0, "completed", "a"), _hop(3, 1, "received", "b")):
        story.add(event)
    running = _job(JobState.RUNNING, actor="b", steps_completed=1)
    assert [(hop.actor, hop.state) for hop in story.hops(running)] == [
        ("a", "done"),
        ("b", "current"),
        ("c", "waiting"),
    ]
    assert story.hops(running)[0].took_s == 1.0
    early = Story()
    for event in (_hop(1, 0, "received", "a"), _hop(2, 0, "completed", "a")):
        early.add(event)
    between = _job(JobState.RUNNING, actor="a", steps_completed=1)
    assert [hop.state for hop in early.hops(between)] == ["done", "queued", "waiting"]
    error = ErrorRecord(code="internal", message="no")
    assert [hop.state for hop in story.hops(_job(JobState.FAILED, actor="b", error=error))] == [
        "done",
        "failed",
        "waiting",
    ]
    assert [hop.state for hop in story.hops(_job(JobState.CANCELLED, actor="b"))] == ["done", "stopped", "waiting"]


def test_a_route_that_changed_on_the_way_is_drawn_as_it_was_walked() -> None:
    story = Story()
    story.add(_hop(1, 0, "received", "a"))
    story.add(_hop(2, 0, "completed", "a"))
    story.add(_hop(3, 1, "received", "x"))
    story.add(_hop(4, 3, "received", "y"))
    assert [hop.actor for hop in story.hops(_job(JobState.RUNNING, actor="y"))] == ["a", "x", "c", "y"]


def test_children_retries_and_dead_letters_are_counted_where_they_happened() -> None:
    story = Story()
    story.add(_hop(1, 0, "received", "a"))
    story.add(_hop(2, 0, "completed", "a"))
    story.add(_told(3, "split", total=300, children=[f"c{n}" for n in range(300)]))
    story.add(_hop(4, 1, "received", "b", "c0"))
    story.add(_hop(5, 1, "received", "b", "c1"))
    story.add(_told(6, "retry", envelope_id="c1", actor="b"))
    story.add(_told(7, "dead_letter", envelope_id="c1", actor="b"))
    story.add(_told(8, "branch", envelope_id="c1", outcome="failed", error={"message": "broken"}))
    story.add(_told(9, "branch", envelope_id="c0", outcome="done"))
    assert (story.children_total, len(story.children)) == (300, CHILDREN_MAX)
    assert [(story.children[one].state, story.children[one].message) for one in ("c0", "c1", "c2")] == [
        ("succeeded", ""), ("failed", "broken"), ("pending", ""),
    ]  # fmt: skip
    hop = story.hops(_job(JobState.RUNNING, actor="b"))[1]
    assert (hop.received, hop.retries, hop.dead) == (2, 1, 1)


def test_a_story_is_bounded_however_long_the_log_is() -> None:
    story = Story()
    for number in range(1, 5000):
        story.add(_hop(number, 0, "processing", "a", f"e{number}"))
    assert (len(story.events), story.seen) == (EVENTS_SHOWN, 4999)
    assert len(story._where) <= 2000
    assert len(story._told) <= 2000


def _flow() -> Flow:
    unused: Any = None
    return Flow(unused, unused, unused)


def test_rates_latency_and_failures_come_from_the_log() -> None:
    flow, now = _flow(), 1_000_000 * STEP_S * 1000
    for n in range(100):
        began = now - 30_000 + n
        took = 100 if n < 94 else 5_000
        for status, at in (("received", began), ("completed", began + took)):
            data = {"envelope_id": f"e{n}", "hop": 0, "actor": "a", "status": status}
            flow.take(JobEvent(id=n, job_id="j", kind="progress", data=data, created_at=at))
    for kind in ("retry", "retry", "dead_letter"):
        flow.take(JobEvent(id=1, job_id="j", kind=kind, data={"actor": "a"}, created_at=now - 1000))
    lately = flow.track("a").lately(now)
    assert lately["rate"] == pytest.approx(100 / 60)
    assert (lately["failed"], lately["retried"]) == (1, 2)
    assert 0.1 <= lately["p50"] <= 0.14
    assert 5.0 <= lately["p95"] <= 7.0
    series = flow.track("a").series(now)
    assert {len(values) for values in series.values()} == {POINTS - 1}
    assert sum(series["rate"]) * STEP_S == pytest.approx(100)


def test_tracks_are_bounded_in_time_and_number() -> None:
    flow = _flow()
    for n in range(1000):
        data = {"envelope_id": f"e{n}", "hop": 0, "actor": f"actor-{n}", "status": "received"}
        flow.take(JobEvent(id=n, job_id="j", kind="progress", data=data, created_at=n))
    assert len(flow._tracks) == 200
    track = Track()
    for step in range(5 * POINTS):
        track.at(step * STEP_S * 1000)
    assert len(track.points) == POINTS
    assert min(track.points) == 4 * POINTS


def test_a_quantile_is_the_bound_of_its_bucket() -> None:
    counts = [0] * (len(BOUNDS) + 1)
    assert quantile(counts, 0.5) is None
    counts[3] = 1
    assert quantile(counts, 0.5) == pytest.approx(BOUNDS[3], rel=0.01)
    counts[len(BOUNDS)] = 10  # beyond the last bound: at least that
    assert quantile(counts, 0.95) == pytest.approx(BOUNDS[-1], rel=0.01)


def test_a_spark_line_stays_in_its_frame_and_nothing_has_none() -> None:
    assert spark([0, 0, 0]) == ""
    points = [tuple(map(float, pair.split(","))) for pair in spark([0, 5, 2]).split()]
    assert [x for x, _ in points] == [0, 60, 120]
    assert points[1][1] < points[2][1] < points[0][1] < SPARK_HEIGHT


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0004, "0 ms"), (0.34, "340 ms"), (4.23, "4.2 s"), (42, "42 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"),
     (90_000, "1 d 1 h"), (None, "–"), (-3, "0 ms")],
)  # fmt: skip
def test_durations_are_told_in_one_or_two_units(seconds: float | None, words: str) -> None:
    assert shown.length(seconds) == words


@pytest.mark.req("GATE-19")
def test_what_would_not_be_seen_is_written_out() -> None:
    assert shown.text("a\u202eb\x00c\ud800") == "a\\u202eb\\u0000c\\ud800"
    assert shown.text("tab\tand\nline") == "tab\tand\nline"
    assert shown.text("x" * 10, 4) == "xxxx… (10 characters)"
    assert len(shown.brief("word " * 1000)) <= 120


@pytest.mark.req("GATE-19")
@pytest.mark.parametrize("path", ["//evil", "/\\evil", "https://evil", "/\nx", "javascript:1", "", "/ü"])
def test_nobody_is_sent_away_from_here(path: str) -> None:
    assert local_path(path) == "/"
    assert local_path("/dashboard/jobs/1?x=y") == "/dashboard/jobs/1?x=y"
