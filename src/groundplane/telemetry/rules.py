"""Rules of alerts: name, what is looked at, threshold, severity, and for how long.

The same rule is evaluated in process (`telemetry.alerts`) and exported as a rule file of Prometheus (`rule_file`). Own
rules are tables of TOML:

    [[rule]]
    name = "orders_failing"
    severity = "critical"
    threshold = 0.1
    for = "5m"
    summary = "Orders fail."
    runbook = "https://example.com/orders"
    [rule.expression]
    kind = "ratio"
    part = "groundplane_custom_orders_failed_total"
    whole = "groundplane_custom_orders_total"
    window_s = 300
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from groundplane.core.durations import parse_duration
from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.telemetry.expressions import Expression

RULES_MAX = 500
_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}\Z")
_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """An alert while the expression is over (`above`) or under (`below`) the threshold for `for_s` seconds without a
    break. `runbook` is the address of what to do; `summary` a sentence for who is woken.
    """

    name: str
    expression: Expression
    threshold: float
    severity: Literal["info", "warning", "critical"]
    compare: Literal["above", "below"] = "above"
    for_s: float = 0.0
    summary: str = ""
    runbook: str = ""

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise InvalidArgument(f"name: {self.name!r} is no name of a rule; use a-z, 0-9 and _, as queue_backlog")
        if not self.for_s >= 0:
            raise InvalidArgument(f"for_s: {self.for_s!r} of {self.name!r} must be 0 or more seconds")
        for metric in self.expression.names():
            if not _METRIC.match(metric):
                raise InvalidArgument(f"metric: {metric!r} of {self.name!r} is no name of a metric")
        for label, wanted in self.expression.where.items():
            try:
                re.compile(wanted.removeprefix("!"))
            except re.error as error:
                raise InvalidArgument(
                    f"where.{label}: {wanted!r} of {self.name!r} is no regular expression: {error}"
                ) from error
        if not 0 < getattr(self.expression, "q", 0.5) < 1:
            raise InvalidArgument(f"q: {getattr(self.expression, 'q', 0)!r} of {self.name!r} must lie between 0 and 1")
        if not getattr(self.expression, "window_s", 1.0) > 0:
            raise InvalidArgument(f"window_s: of {self.name!r} must be more than 0 seconds")

    def broken(self, value: float) -> bool:
        """Whether the value is on the wrong side of the threshold."""
        return value > self.threshold if self.compare == "above" else value < self.threshold

    def promql(self) -> str:
        """When it fires, for Prometheus."""
        return f"{self.expression.promql()} {'>' if self.compare == 'above' else '<'} {self.threshold:g}"


def rule_file(rules: Sequence[Rule], *, group: str = "groundplane") -> dict[str, Any]:
    """The rules as a rule file of Prometheus has them, to be written as YAML
    (https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/).
    """
    return {"groups": [{"name": group, "rules": [_exported(one) for one in rules]}]}


def _exported(rule: Rule) -> dict[str, Any]:
    annotations = {
        "summary": rule.summary,
        "description": "The value is {{ $value | humanize }}.",
        "runbook_url": rule.runbook,
    }
    return {
        "alert": rule.name,
        "expr": rule.promql(),
        **({"for": f"{round(rule.for_s)}s"} if rule.for_s else {}),
        "labels": {"severity": rule.severity},
        "annotations": {name: text for name, text in annotations.items() if text},
    }


def load_rules(path: Path) -> list[Rule]:
    """The rules of a TOML file. Errors name the file and the field: `not_found`, `invalid_argument`."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"rules: {str(path)!r} does not exist; mend the name") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"rules: {str(path)!r} cannot be read: {error}") from error
    tables = document.pop("rule", [])
    if document or not isinstance(tables, list) or not tables:
        raise InvalidArgument(f"rules: {str(path)!r} must hold tables [[rule]] and nothing else")
    if len(tables) > RULES_MAX:
        raise InvalidArgument(f"rules: {str(path)!r} has {len(tables)} rules; at most {RULES_MAX} are taken")
    rules = [_rule(path, number, table) for number, table in enumerate(tables, start=1)]
    check_names(rules)
    return rules


def check_names(rules: Sequence[Rule]) -> None:
    """`invalid_argument` where two rules have one name."""
    seen: set[str] = set()
    for one in rules:
        if one.name in seen:
            raise InvalidArgument(f"name: {one.name!r} is the name of two rules; rename one")
        seen.add(one.name)


def _rule(path: Path, number: int, table: Any) -> Rule:
    where = f"rule {number} of {str(path)!r}"
    if not isinstance(table, dict):
        raise InvalidArgument(f"rules: {where} is no table; write [[rule]]")
    known = {*Rule.__struct_fields__, "for"} - {"for_s"}
    for key in table:
        if key not in known:
            raise InvalidArgument(f"{key}: is no field of a rule ({where}); there is {', '.join(sorted(known))}")
    given = dict(table)
    if "for" in given:
        given["for_s"] = parse_duration(f"for ({where})", given.pop("for"))
    try:
        return msgspec.convert(given, Rule)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"rules: {where}: {error}") from error
