"""Samples of metrics: of a registry of this process, or of pages of others as Prometheus would scrape them."""

from __future__ import annotations

import asyncio
import math
import urllib.error
import urllib.request
from collections.abc import Collection, Iterable, Iterator, Mapping
from http.client import HTTPException
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from groundplane.core.errors import GroundplaneError, InvalidArgument, Unavailable
from groundplane.telemetry.logs import get_logger
from groundplane.telemetry.series import Labels, Sample, labels_of

TIMEOUT_S = 5.0
PAGE_BYTES_MAX = 64 * 1024 * 1024
_log = get_logger("scraping")


class Source(Protocol):
    """Where samples come from."""

    async def samples(self) -> list[Sample]:
        """All of them now. Never raises for a target that is away: `up` tells."""
        ...


class RegistrySource:
    """The metrics of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    async def samples(self) -> list[Sample]:
        """See the protocol."""
        return list(samples_of(self._registry.collect(), {}))


class PageSource:
    """Pages of other processes. `targets` maps the name of an instance to the URL of its page, and may change.

    Samples get the labels `job` and `instance`, as Prometheus adds them, and each target an `up` of 1 or 0.
    """

    def __init__(self, targets: Mapping[str, str], *, job: str = "groundplane") -> None:
        self._targets = targets
        self._job = job

    async def samples(self) -> list[Sample]:
        """See the protocol."""
        found = await asyncio.gather(*(self._one(name, url) for name, url in list(self._targets.items())))
        return [sample for samples in found for sample in samples]

    async def _one(self, instance: str, url: str) -> list[Sample]:
        labels = {"job": self._job, "instance": instance}
        try:
            families = await fetch(url)
        except GroundplaneError as error:
            _log.debug("scrape_failed", instance=instance, error=error.message)
            return [Sample("up", labels_of(labels), 0.0)]
        return [Sample("up", labels_of(labels), 1.0), *samples_of(families, labels)]


async def fetch(url: str) -> list[Metric]:
    """The metrics of a page. Raises `unavailable` where it cannot be read within 5 s, `invalid_argument` for what is no
    exposition.
    """
    text = await asyncio.to_thread(read_page, url)
    try:
        return list(text_string_to_metric_families(text))
    except ValueError as error:
        raise InvalidArgument(f"url: {url!r} answers with what is no exposition of metrics: {error}") from error


def read_page(url: str, *, also: Collection[int] = (), timeout_s: float = TIMEOUT_S) -> str:
    """The text of a page; blocks for at most `timeout_s`. Raises `unavailable`, also for a status that is neither below
    300 nor one of `also`.
    """
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            data: bytes = response.read(PAGE_BYTES_MAX)
    except urllib.error.HTTPError as error:
        with error:
            if error.code not in also:
                raise Unavailable(f"url: {url!r} answered {error.code}") from error
            data = error.read(PAGE_BYTES_MAX)
    except (OSError, HTTPException, ValueError) as error:
        raise Unavailable(f"url: {url!r} cannot be read: {error}") from error
    return data.decode("utf-8", "replace")


def samples_of(families: Iterable[Metric], labels: Mapping[str, str]) -> Iterator[Sample]:
    """Every sample with these labels beside its own; values that are no number are left out."""
    for family in families:
        for one in family.samples:
            if not math.isnan(one.value) and not one.name.endswith("_created"):
                yield Sample(one.name, _merged(one.labels, labels), float(one.value))


def _merged(own: Mapping[str, str], added: Mapping[str, str]) -> Labels:
    return labels_of({**added, **own})
