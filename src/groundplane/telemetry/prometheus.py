"""Asking a Prometheus, and pushing to a Pushgateway. Calls block no loop and end within `TIMEOUT_S` seconds.

await push("http://127.0.0.1:9091", registry, job="nightly")      # what a job that ends before a scrape measured
server = Prometheus("http://127.0.0.1:9090")
await server.query('sum(rate(groundplane_gateway_requests_total[5m]))')
await server.query_range("up", start_s=now - 3600, end_s=now, step_s=15)
"""

from __future__ import annotations

import asyncio
import math
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from prometheus_client import CollectorRegistry

from groundplane.core.errors import DeadlineExceeded, GroundplaneError, InvalidArgument, Unavailable
from groundplane.core.secrets import mask_url
from groundplane.telemetry.metrics import render
from groundplane.telemetry.series import Labels, labels_of

TIMEOUT_S = 10.0
POINTS_MAX = 11_000
"""Of one series in one range query; the server has the same bound."""

Point = tuple[float, float]
"""Unix seconds and the value."""


async def push(
    url: str,
    registry: CollectorRegistry,
    *,
    job: str,
    grouping: Mapping[str, str] | None = None,
    replace: bool = True,
) -> None:
    """Hand the metrics of a registry to the Pushgateway at `url`, under the group of `job` and `grouping`; it shows
    them until they are pushed again or deleted. With `replace` they take the place of all that the group had, else of
    metrics of the same names.

    Accepted when this returns. Raises `invalid_argument` for what the Pushgateway refuses (two types of one metric,
    say), `unavailable` where it cannot be reached.
    """
    await push_page(url, render(registry), job=job, grouping=grouping, replace=replace)


async def push_page(
    url: str, page: bytes, *, job: str, grouping: Mapping[str, str] | None = None, replace: bool = True
) -> None:
    """As `push`, for what is written in the text format of Prometheus already."""
    if not job:
        raise InvalidArgument(f"job: {job!r} is empty; name what pushes")
    parts = [f"/metrics{_grouped('job', job)}"]
    parts += [_grouped(name, value) for name, value in sorted((grouping or {}).items())]
    method = "PUT" if replace else "POST"
    await asyncio.to_thread(_send, f"{_base(url)}{''.join(parts)}", page, method)


async def forget(url: str, *, job: str, grouping: Mapping[str, str] | None = None) -> None:
    """Delete the group of `job` and `grouping` from the Pushgateway; one that is not there is fine."""
    parts = [_grouped(name, value) for name, value in sorted((grouping or {}).items())]
    await asyncio.to_thread(_send, f"{_base(url)}/metrics{_grouped('job', job)}{''.join(parts)}", None, "DELETE")


class Prometheus:
    """A Prometheus server, asked over its HTTP interface (https://prometheus.io/docs/prometheus/latest/querying/api/).

    Errors of every method: `invalid_argument` for PromQL that it does not understand, with its words; `unavailable`;
    `deadline_exceeded` where the query took too long.
    """

    def __init__(self, url: str) -> None:
        self._url = _base(url)

    async def query(self, expression: str, *, at_s: float | None = None) -> dict[Labels, float]:
        """The value of each series now, or at a time. A scalar has no labels."""
        given = {"query": expression, **({"time": f"{at_s:.3f}"} if at_s is not None else {})}
        data = await self._ask("query", given)
        if data["resultType"] in ("scalar", "string"):
            return {(): float(data["result"][1])}
        return {_labels(one): float(one["value"][1]) for one in data["result"]}

    async def query_range(
        self, expression: str, *, start_s: float, end_s: float, step_s: float
    ) -> dict[Labels, list[Point]]:
        """The points of each series from `start_s` to `end_s`, `step_s` apart: at most 11,000."""
        if not 0 < step_s < math.inf:
            raise InvalidArgument(f"step_s: {step_s!r} must be more than 0 seconds")
        if not start_s <= end_s:
            raise InvalidArgument(f"start_s: {start_s!r} lies after end_s {end_s!r}; exchange them")
        if (end_s - start_s) / step_s > POINTS_MAX:
            raise InvalidArgument(f"step_s: {step_s!r} gives more than {POINTS_MAX} points; take a longer step")
        given = {"query": expression, "start": f"{start_s:.3f}", "end": f"{end_s:.3f}", "step": f"{step_s:g}"}
        data = await self._ask("query_range", given)
        return {_labels(one): [(at, float(value)) for at, value in one["values"]] for one in data["result"]}

    async def _ask(self, what: str, given: Mapping[str, str]) -> Any:
        body = urlencode(given).encode()
        answer = await asyncio.to_thread(_send, f"{self._url}/api/v1/{what}", body, "POST", _FORM)
        return msgspec.json.decode(answer)["data"]


_FORM = "application/x-www-form-urlencoded"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def _send(url: str, body: bytes | None, method: str, kind: str = _TEXT) -> bytes:
    request = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": kind})
    shown = mask_url(url)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            content: bytes = response.read()
            return content
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(shown, error.code, error.read(64 * 1024)) from error
    except (OSError, HTTPException) as error:
        raise Unavailable(f"url: {shown!r} cannot be reached: {error}; is it started?") from error


def _refused(shown: str, status: int, body: bytes) -> GroundplaneError:
    try:
        told = msgspec.json.decode(body)
        message, kind = str(told["error"]), str(told["errorType"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        message, kind = body.decode("utf-8", "replace").strip()[:500], ""
    if kind == "bad_data":
        return InvalidArgument(f"query: is not understood: {message}", reason="invalid_promql")
    if kind in ("timeout", "canceled"):
        return DeadlineExceeded(f"query: took too long: {message}; ask for less")
    if status in (400, 422):
        return InvalidArgument(f"metrics: {shown!r} refused them: {message}")
    return Unavailable(f"url: {shown!r} answered {status}: {message}")


def _base(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgument(f"url: {mask_url(url)!r} is no http:// or https:// URL; write http://127.0.0.1:9091")
    return url.rstrip("/")


def _grouped(name: str, value: str) -> str:
    """A part of the path: a value that is empty or has a slash goes as base64, as the Pushgateway has it."""
    if value and "/" not in value:
        return f"/{name}/{quote(value, safe='')}"
    from base64 import urlsafe_b64encode

    return f"/{name}@base64/{urlsafe_b64encode(value.encode()).decode() or '='}"


def _labels(one: Mapping[str, Any]) -> Labels:
    return labels_of(one["metric"])


__all__ = ["Prometheus", "forget", "push", "push_page"]
