"""`groundplane alerts`: the rules, for Prometheus or evaluated here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_OK
from groundplane.core.errors import InvalidArgument
from groundplane.core.settings import Settings
from groundplane.telemetry.alerting import rules_of, watcher_of
from groundplane.telemetry.rules import rule_file
from groundplane.telemetry.scraping import PageSource


def rules(
    *,
    out: Annotated[Path | None, Parameter(help="Write it to this file.")] = None,
    common: Common = COMMON,
) -> int:
    """Print the default rules and those of `alerts.rules` as Prometheus reads them (`rule_files`).

    Examples:

      groundplane alerts rules --out /etc/prometheus/groundplane.rules.yml
    """
    from groundplane.deploy.document import to_yaml

    document = rule_file(rules_of(common.settings()))
    text = to_yaml([document], note="# written by `groundplane alerts rules`\n")
    if out is not None:
        out.write_text(text, encoding="utf-8")
        common.output.result({"file": str(out)}, f"written: {out}")
    else:
        common.output.result(document, text)
    return EXIT_OK


def list_(*, common: Common = COMMON) -> int:
    """List the default rules and those of `alerts.rules`.

    Examples:

      groundplane alerts list
    """
    rows = [
        {
            "name": one.name,
            "severity": one.severity,
            "for_s": one.for_s,
            "expression": one.promql(),
            "summary": one.summary,
            "runbook": one.runbook,
        }
        for one in rules_of(common.settings())
    ]
    common.output.table(rows, ["name", "severity", "for_s", "summary"], empty="there are no rules")
    return EXIT_OK


def watch(
    *,
    target: Annotated[
        list[str], Parameter(negative="", help="NAME=URL of a metrics page; may be repeated. Without NAME its address.")
    ],
    common: Common = COMMON,
) -> int:
    """Evaluate the rules over metrics pages and deliver what fires, without a Prometheus, until stopped.

    Where it goes is set in `[alerts]`: the log always, a webhook, e-mail.

    Examples:

      groundplane alerts watch --target gateway=http://127.0.0.1:9090/metrics
    """
    from groundplane.telemetry.logs import configure

    settings = common.settings()
    configure(settings.log_level, form=settings.log_format)
    asyncio.run(_watch(settings, _targets(target), common))
    return EXIT_OK


async def _watch(settings: Settings, targets: dict[str, str], common: Common) -> None:
    from groundplane.cli.dev import signals

    watcher = watcher_of(settings, PageSource(targets))
    stop = asyncio.Event()
    with signals(stop.set):
        watching = asyncio.create_task(watcher.run(settings.alerts_interval_s), name="alerts")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        channels = [one.name for one in watcher.courier.channels]
        common.output.result(
            {"event": "ready", "rules": len(watcher.alerts.rules), "targets": sorted(targets), "channels": channels},
            f"{len(watcher.alerts.rules)} rules over {', '.join(targets)} to {', '.join(channels)}; Ctrl-C stops",
        )
        done, _ = await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (watching, stopping):
            task.cancel()
        await asyncio.gather(watching, stopping, return_exceptions=True)
        if watching in done:
            watching.result()


def _targets(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given:
        name, equals, url = one.partition("=")
        if not equals or "://" in name:
            name, url = one.partition("://")[2].partition("/")[0], one
        if not url.startswith(("http://", "https://")):
            raise InvalidArgument(f"target: {one!r} is no URL; write gateway=http://127.0.0.1:9090/metrics")
        if name in found:
            raise InvalidArgument(f"target: {name!r} names two pages; give each a name of its own")
        found[name] = url
    return found
