"""`groundplane metrics`: for work that ends before anybody scrapes it, and for asking what was scraped."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_OK
from groundplane.core.durations import parse_duration
from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.telemetry.prometheus import Prometheus, push_page
from groundplane.telemetry.scraping import read_page
from groundplane.telemetry.series import Labels


def push(
    source: str,
    /,
    *,
    to: Annotated[str, Parameter(help="Address of the Pushgateway, as http://127.0.0.1:9091.")],
    job: Annotated[str, Parameter(help="The group under which they are shown, with --group.")],
    group: Annotated[list[str] | None, Parameter(negative="", help="NAME=VALUE; may be repeated.")] = None,
    keep: Annotated[bool, Parameter(negative="", help="Keep metrics of the group that are not pushed now.")] = False,
    common: Common = COMMON,
) -> int:
    """Push metrics in the text format of Prometheus to a Pushgateway.

    Examples:

      groundplane metrics push results.prom --to http://127.0.0.1:9091 --job nightly

      groundplane metrics push http://127.0.0.1:9090/metrics --to http://127.0.0.1:9091 --job batch --group shard=3

    Parameters
    ----------
    source
        A file, - for standard input, or the URL of a metrics page.
    """
    page = _page(source)
    asyncio.run(push_page(to, page, job=job, grouping=_pairs(group or []), replace=not keep))
    lines = sum(1 for line in page.splitlines() if line and not line.startswith(b"#"))
    common.output.result({"job": job, "samples": lines}, f"pushed {lines} samples as job {job!r}")
    return EXIT_OK


def query(
    expression: str,
    /,
    *,
    url: Annotated[str, Parameter(help="Address of the Prometheus, as http://127.0.0.1:9090.")],
    last: Annotated[str | None, Parameter(help="A range that ends now, as 1h: points instead of values.")] = None,
    step: Annotated[str, Parameter(help="How far apart the points of a range are.")] = "15s",
    common: Common = COMMON,
) -> int:
    """Ask a Prometheus in PromQL.

    Examples:

      groundplane metrics query 'sum(rate(groundplane_gateway_requests_total[5m]))' --url http://127.0.0.1:9090

      groundplane metrics query up --url http://127.0.0.1:9090 --last 10m --json
    """
    rows = asyncio.run(_ask(Prometheus(url), expression, last, step))
    common.output.table(rows, ["labels", "points" if last else "value"], empty="there is no such series")
    return EXIT_OK


async def _ask(server: Prometheus, expression: str, last: str | None, step: str) -> list[dict[str, Any]]:
    if last is None:
        found = await server.query(expression)
        return [{"labels": _shown(labels), "value": value} for labels, value in found.items()]
    now = time.time()
    start_s, step_s = now - parse_duration("last", last), parse_duration("step", step)
    series = await server.query_range(expression, start_s=start_s, end_s=now, step_s=step_s)
    return [{"labels": _shown(labels), "points": points} for labels, points in series.items()]


def _shown(labels: Labels) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels)


def _page(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read()
    if source.startswith(("http://", "https://")):
        return read_page(source).encode()
    try:
        return Path(source).read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"source: {source!r} does not exist; give a file, - or a URL") from error
    except OSError as error:
        raise InvalidArgument(f"source: {source!r} cannot be read: {error.strerror}") from error


def _pairs(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidArgument(f"group: {text!r} is not NAME=VALUE; write shard=3")
        found[name] = value
    return found
