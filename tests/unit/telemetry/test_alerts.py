"""Alerts in process: rules over points, pending, firing, resolved, and what is told of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from groundplane.core.errors import GroundplaneError, InvalidArgument
from groundplane.telemetry.alerts import REPEAT_S, Alerts
from groundplane.telemetry.default_rules import default_rules
from groundplane.telemetry.expressions import Increase, Level, Quantile, Ratio, histogram_quantile
from groundplane.telemetry.rules import Rule, load_rules, rule_file
from groundplane.telemetry.series import Points, Sample, labels_of

T0 = 1_700_000_000.0


def _sample(name: str, value: float, **labels: str) -> Sample:
    return Sample(name, labels_of(labels), value)


def _calls(failed: float, received: float, actor: str = "double") -> list[Sample]:
    return [
        _sample("groundplane_actor_messages_failed_total", failed, actor=actor, reason="handler_error"),
        _sample("groundplane_actor_messages_received_total", received, actor=actor),
    ]


def _rule(name: str) -> Rule:
    (found,) = (one for one in default_rules() if one.name == name)
    return found


@pytest.mark.req("ALERT-01.1")
def test_ten_failures_of_fifteen_are_a_high_error_rate_and_a_warning() -> None:
    alerts = Alerts(default_rules())
    alerts.record(_calls(0, 0), T0)
    assert alerts.evaluate(T0) == []
    alerts.record(_calls(10, 15), T0 + 15)
    (notice,) = alerts.evaluate(T0 + 15)
    assert (notice.rule.name, notice.rule.severity, notice.status) == ("high_error_rate", "warning", "firing")
    (alert,) = notice.firing
    assert (dict(alert.labels), alert.value) == ({"actor": "double"}, pytest.approx(10 / 15))


def test_one_failure_of_fifteen_and_nine_of_nine_are_no_high_error_rate() -> None:
    for failed, received in ((1, 15), (9, 9)):
        alerts = Alerts([_rule("high_error_rate")])
        alerts.record(_calls(0, 0), T0)
        alerts.record(_calls(failed, received), T0 + 15)
        assert alerts.evaluate(T0 + 15) == []


@pytest.mark.req("ALERT-01.2")
def test_requests_that_take_a_second_and_a_half_are_a_high_latency_and_critical() -> None:
    def page(count: int, quick: int) -> list[Sample]:
        bounds = {"0.5": quick, "1.0": quick, "2.0": count, "+Inf": count}
        name = "groundplane_gateway_request_seconds_bucket"
        return [_sample(name, value, route="/v1/jobs", le=bound) for bound, value in bounds.items()]

    alerts = Alerts(default_rules())
    alerts.record(page(0, 0), T0)
    alerts.record(page(20, 20), T0 + 15)
    assert alerts.evaluate(T0 + 15) == []
    alerts.record(page(40, 20), T0 + 30)  # 20 requests between 1 and 2 s, as those of 1.5 s are
    (notice,) = alerts.evaluate(T0 + 30)
    assert (notice.rule.name, notice.rule.severity) == ("high_latency", "critical")
    assert 1.0 < notice.firing[0].value <= 2.0


def test_a_rule_fires_only_when_it_was_broken_for_its_whole_time() -> None:
    rule = Rule(name="down", expression=Level(metric="up"), threshold=1, compare="below", severity="critical", for_s=60)
    alerts = Alerts([rule])
    for passed, up, told in ((0, 0, []), (45, 0, []), (50, 1, []), (60, 0, []), (119, 0, []), (120, 0, ["firing"])):
        alerts.record([_sample("up", up)], T0 + passed)
        assert [one.status for one in alerts.evaluate(T0 + passed)] == told, passed


@pytest.mark.req("ALERT-02.2")
def test_alerts_of_a_rule_are_one_notice_told_once_and_resolved_once() -> None:
    alerts = Alerts([Rule(name="full", expression=Level(metric="q", by=["queue"]), threshold=5, severity="warning")])

    def at(passed: float, **depths: float) -> list[tuple[str, list[str], list[str]]]:
        alerts.record([_sample("q", value, queue=name) for name, value in depths.items()], T0 + passed)
        return [
            (
                one.status,
                [dict(alert.labels)["queue"] for alert in one.firing],
                [dict(alert.labels)["queue"] for alert in one.resolved],
            )
            for one in alerts.evaluate(T0 + passed)
        ]

    assert at(0, a=9, b=9, c=1) == [("firing", ["a", "b"], [])]
    assert at(15, a=10, b=9, c=1) == []
    assert at(30, a=10, b=1, c=7) == [("firing", ["a", "c"], ["b"])]
    assert at(45, a=1, b=1, c=1) == [("resolved", [], ["a", "c"])]
    assert at(60, a=1, b=1, c=1) == []


def test_what_still_fires_after_four_hours_is_told_again() -> None:
    alerts = Alerts([Rule(name="full", expression=Level(metric="q"), threshold=5, severity="warning")])
    told = []
    for passed in range(0, int(REPEAT_S) + 240, 120):
        alerts.record([_sample("q", 9)], T0 + passed)
        told += [passed for _ in alerts.evaluate(T0 + passed)]
    assert told == [0, REPEAT_S]


@pytest.mark.req("ALERT-03")
def test_retention_deletes_points_of_the_day_before_and_keeps_the_rest() -> None:
    points = Points({"load"})
    hour = 3600.0
    for age_h in (30, 25, 24.01, 23.99, 12, 0):
        points.record([_sample("load", age_h, host="a")], T0 - age_h * hour)
    points.record([_sample("load", 1, host="old")], T0 + 1)
    kept = points.range("load", start_s=0, end_s=T0 + 2)
    assert [value for _, value in kept[labels_of({"host": "a"})]] == [23.99, 12, 0]
    assert points.expire(T0 + 23.995 * hour) == 2
    assert points.expire(T0 + 30 * hour) == 2
    assert points.range("load", start_s=0, end_s=T0 + hour) == {}


def test_a_range_query_tells_the_points_between_two_times_by_series() -> None:
    points = Points({"load"})
    for passed in range(0, 60, 10):
        points.record([_sample("load", passed, host="a"), _sample("load", -passed, host="b")], T0 + passed)
    found = points.range("load", start_s=T0 + 10, end_s=T0 + 30, where={"host": "a|c"})
    assert found == {labels_of({"host": "a"}): [(T0 + 10, 10), (T0 + 20, 20), (T0 + 30, 30)]}


def test_a_counter_that_restarts_or_is_new_has_risen_from_nothing() -> None:
    points = Points({"n_total"})
    for passed, value in ((0, 100), (10, 110), (20, 3), (30, 5)):
        points.record([_sample("n_total", value, pid="1")], T0 + passed)
    points.record([_sample("n_total", 7, pid="2")], T0 + 40)
    rise = Increase(metric="n_total", window_s=60, by=["pid"])
    assert rise.values(points, T0 + 40) == {labels_of({"pid": "1"}): 15, labels_of({"pid": "2"}): 7}


def test_the_thousand_and_first_series_of_a_metric_is_passed_over_and_counted() -> None:
    points = Points({"q"})
    points.record([_sample("q", 1, id=str(number)) for number in range(1003)], T0)
    assert (len(points.range("q", start_s=0, end_s=T0)), points.dropped) == (1000, 3)


def test_quantiles_of_histograms_are_those_of_prometheus() -> None:
    buckets = [(0.1, 10.0), (1.0, 20.0), (math.inf, 20.0)]
    assert histogram_quantile(0.5, buckets) == pytest.approx(0.1)
    assert histogram_quantile(0.75, buckets) == pytest.approx(0.55)
    assert histogram_quantile(0.99, [(1.0, 1.0), (math.inf, 10.0)]) == 1.0
    assert math.isnan(histogram_quantile(0.5, [(1.0, 0.0), (math.inf, 0.0)]))


def test_default_rules_have_names_of_their_own_and_name_a_runbook_each() -> None:
    rules = default_rules()
    assert len({one.name for one in rules}) == len(rules) > 10
    for one in rules:
        assert one.summary
        assert one.runbook == f"docs/howto/runbooks/{one.name}.md"


def test_expressions_are_written_as_promql() -> None:
    ratio = Ratio(part="a_total", whole="b_total", window_s=60, at_least=3, by=["x"], where={"s": "!5.."})
    assert ratio.promql() == (
        'sum by (x) (increase(a_total{s!~"5.."}[60s])) / (sum by (x) (increase(b_total[60s])) >= 3)'
    )
    quantile = Quantile(metric="t_seconds", q=0.95, window_s=300, where={"route": r"/\{id\}"})
    assert quantile.promql() == (
        'histogram_quantile(0.95, sum by (le) (rate(t_seconds_bucket{route=~"/\\\\{id\\\\}"}[300s])))'
    )
    exported = rule_file([_rule("replica_down")])["groups"][0]["rules"][0]
    assert exported["expr"] == 'min by (instance) (up{job=~"groundplane"}) < 1'
    assert (exported["for"], exported["labels"]) == ("60s", {"severity": "critical"})


OWN = """
[[rule]]
name = "orders_failing"
severity = "critical"
threshold = 0.1
for = "5m"
summary = "Orders fail."
[rule.expression]
kind = "ratio"
part = "failed_total"
whole = "orders_total"
window_s = 300
"""


def test_own_rules_are_read_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(OWN)
    (rule,) = load_rules(file)
    assert (rule.for_s, rule.expression.names()) == (300, {"failed_total", "orders_total"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OWN.replace("threshold = 0.1", "limit = 0.1"), "limit: is no field of a rule"),
        (OWN.replace('"critical"', '"loud"'), "Invalid enum value 'loud' - at `$.severity`"),
        (OWN.replace('"ratio"', '"mean"'), "Invalid value 'mean' - at `$.expression.kind`"),
        (OWN.replace('"5m"', '"soon"'), "'soon' is not a positive duration"),
        (OWN.replace("orders_failing", "Orders!"), "'Orders!' is no name of a rule"),
        (OWN + OWN, "'orders_failing' is the name of two rules"),
        (OWN.replace("failed_total", "failed total"), "metric: 'failed total' of 'orders_failing'"),
        ("x = 1", "must hold tables [[rule]] and nothing else"),
        ("[[rule", "cannot be read"),
    ],
)
def test_rules_that_are_wrong_are_refused_by_the_field(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        load_rules(file)
    assert said in str(caught.value)


def test_a_file_of_rules_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(GroundplaneError, match="does not exist"):
        load_rules(tmp_path / "none.toml")
