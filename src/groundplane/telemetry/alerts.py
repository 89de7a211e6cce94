"""Alerts: rules evaluated over points, from pending over firing to resolved, each told once.

    alerts = Alerts(rules)
    alerts.record(samples, at_s=now)
    for notice in alerts.evaluate(now): …    # a notice for each rule whose alerts changed

An alert is one rule for one combination of labels. It is *pending* while its rule is broken for less than `for_s`, then
*firing*; it has *resolved* when a later evaluation finds the rule kept, or finds no value any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from groundplane.core.clock import iso_z
from groundplane.core.errors import GroundplaneError
from groundplane.telemetry.logs import get_logger
from groundplane.telemetry.rules import Rule, check_names
from groundplane.telemetry.series import RETENTION_S, Labels, Points, Sample

REPEAT_S = 4 * 3600.0
"""A notice of what still fires is repeated after that time."""
ALERTS_MAX = 100
"""Of one rule: a label with many values must not become as many mails. Those over it are counted in the notice."""
_log = get_logger("alerts")


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert. `since_s` is when the rule was first found broken, `changed_s` when it came into this state."""

    rule: Rule
    labels: Labels
    value: float
    state: Literal["pending", "firing", "resolved"]
    since_s: float
    changed_s: float

    @property
    def fingerprint(self) -> str:
        """The same for the same rule and labels, in every process."""
        text = repr((self.rule.name, self.labels))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of one rule at once: everything of it that fires, and what has resolved since the last notice."""

    rule: Rule
    firing: list[Alert]
    resolved: list[Alert]
    untold: int = 0

    @property
    def status(self) -> Literal["firing", "resolved"]:
        """`firing` while anything does."""
        return "firing" if self.firing else "resolved"

    def subject(self) -> str:
        """One line."""
        count = len(self.firing) or len(self.resolved)
        return f"[{self.status.upper()}:{count}] {self.rule.name} ({self.rule.severity})"

    def text(self) -> str:
        """For people."""
        lines = [self.rule.summary, ""] if self.rule.summary else []
        for one in (*self.firing, *self.resolved):
            labels = ", ".join(f"{name}={value}" for name, value in one.labels) or "the whole plane"
            lines.append(f"{one.state:<8} {labels}: {one.value:.6g}, since {iso_z(round(one.since_s * 1000))}")
        if self.untold:
            lines.append(f"and {self.untold} more")
        lines += ["", f"rule: {self.rule.promql()}"]
        if self.rule.runbook:
            lines.append(f"what to do: {self.rule.runbook}")
        return "\n".join(lines) + "\n"

    def document(self) -> dict[str, Any]:
        """As Alertmanager tells webhooks, so that whoever understands those understands this
        (https://prometheus.io/docs/alerting/latest/configuration/#webhook_config).
        """
        common = {"alertname": self.rule.name, "severity": self.rule.severity}
        return {
            "version": "4",
            "groupKey": f'{{}}:{{alertname="{self.rule.name}"}}',
            "truncatedAlerts": self.untold,
            "status": self.status,
            "receiver": "groundplane",
            "groupLabels": {"alertname": self.rule.name},
            "commonLabels": common,
            "commonAnnotations": _annotations(self.rule),
            "externalURL": "",
            "alerts": [_document(one, common) for one in (*self.firing, *self.resolved)],
        }


class _Told:
    """What was told of a rule."""

    __slots__ = ("at_s", "fingerprints")

    def __init__(self) -> None:
        self.fingerprints: set[str] = set()
        self.at_s = 0.0


class Alerts:
    """The alerts of some rules in one process. Used from one event loop."""

    def __init__(self, rules: Sequence[Rule], *, retention_s: float = RETENTION_S, repeat_s: float = REPEAT_S) -> None:
        check_names(rules)
        self.rules = list(rules)
        self.points = Points({name for rule in rules for name in rule.expression.names()}, retention_s=retention_s)
        self._repeat_s = repeat_s
        self._active: dict[str, dict[Labels, Alert]] = {rule.name: {} for rule in rules}
        self._told = {rule.name: _Told() for rule in rules}

    def __repr__(self) -> str:
        return f"<Alerts of {len(self.rules)} rules, {len(self.firing())} firing>"

    def record(self, samples: Iterable[Sample], at_s: float) -> None:
        """Take what was sampled, in Unix seconds."""
        self.points.record(samples, at_s)

    def active(self) -> list[Alert]:
        """What is pending or firing."""
        return [one for of_rule in self._active.values() for one in of_rule.values()]

    def firing(self) -> list[Alert]:
        """What is firing."""
        return [one for one in self.active() if one.state == "firing"]

    def evaluate(self, now_s: float) -> list[Notice]:
        """Evaluate all rules, and say what is to be told: of a rule whose alerts began to fire or resolved, and again
        after `REPEAT_S` while any fires. What did not change is told once.
        """
        notices = []
        for rule in self.rules:
            try:
                values = rule.expression.values(self.points, now_s)
            except (GroundplaneError, ArithmeticError, ValueError) as error:
                _log.error("rule_failed", rule=rule.name, error=repr(error))
                continue
            resolved = self._advance(rule, {labels: one for labels, one in values.items() if rule.broken(one)}, now_s)
            notice = self._notice(rule, resolved, now_s)
            if notice is not None:
                notices.append(notice)
        return notices

    def _advance(self, rule: Rule, broken: dict[Labels, float], now_s: float) -> list[Alert]:
        """The next states of a rule's alerts; returns those that fired and resolved."""
        before, after = self._active[rule.name], {}
        for labels, value in broken.items():
            old = before.get(labels)
            since_s = old.since_s if old is not None else now_s
            firing = now_s - since_s >= rule.for_s
            state: Literal["pending", "firing"] = "firing" if firing else "pending"
            changed_s = old.changed_s if old is not None and old.state == state else now_s
            after[labels] = Alert(
                rule=rule, labels=labels, value=value, state=state, since_s=since_s, changed_s=changed_s
            )
        self._active[rule.name] = after
        gone = (old for labels, old in before.items() if labels not in after and old.state == "firing")
        return [msgspec.structs.replace(old, state="resolved", changed_s=now_s) for old in gone]

    def _notice(self, rule: Rule, resolved: list[Alert], now_s: float) -> Notice | None:
        firing = [one for one in self._active[rule.name].values() if one.state == "firing"]
        fingerprints = {one.fingerprint for one in firing}
        told = self._told[rule.name]
        again = bool(firing) and now_s - told.at_s >= self._repeat_s
        if not (fingerprints - told.fingerprints or resolved or again):
            return None
        told.fingerprints, told.at_s = fingerprints, now_s
        untold = max(0, len(firing) - ALERTS_MAX)
        return Notice(rule=rule, firing=firing[:ALERTS_MAX], resolved=resolved[:ALERTS_MAX], untold=untold)


def _annotations(rule: Rule) -> dict[str, str]:
    return {name: text for name, text in (("summary", rule.summary), ("runbook_url", rule.runbook)) if text}


def _document(alert: Alert, common: dict[str, str]) -> dict[str, Any]:
    ended = alert.state == "resolved"
    return {
        "status": "resolved" if ended else "firing",
        "labels": {**common, **dict(alert.labels)},
        "annotations": {**_annotations(alert.rule), "value": f"{alert.value:.6g}"},
        "startsAt": iso_z(round(alert.since_s * 1000)),
        "endsAt": iso_z(round(alert.changed_s * 1000)) if ended else "0001-01-01T00:00:00Z",
        "generatorURL": "",
        "fingerprint": alert.fingerprint,
    }


__all__ = ["REPEAT_S", "Alert", "Alerts", "Notice"]
