"""Prometheus, which scrapes what a test tells it to.

Targets are told at the start (`targets=["127.0.0.1:9090"]`) or later, in a file of `folder / "targets"`:
`[{"targets": ["127.0.0.1:9090"], "labels": {"role": "gateway"}}]`
(https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config). It takes new targets and
Alertmanagers over every five seconds; scrapes and rules run each second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import Place, Program, Server, Source
from groundplane.testing.servers.sources import Debian, version_of

_WEB = "/usr/share/prometheus/web"


class Prometheus(Server):
    """See the module."""

    name = "prometheus"
    title = "Prometheus"
    accounts = ("prometheus",)
    options: ClassVar[Mapping[str, str]] = {
        "targets": "Addresses (`host:port`) that are scraped from the start on.",
        "alertmanagers": "Addresses (`host:port`) of Alertmanagers that get what fires.",
        "rules": "Text of a rules file, or the mapping that it would hold.",
        "scrape_interval_s": "Seconds between two scrapes and two evaluations, 1 where not given.",
    }

    def sources(self) -> Sequence[Source]:
        return [
            Debian(
                "prometheus",
                version="2",
                programs={"prometheus": "prometheus"},
                read=lambda programs: version_of([str(programs["prometheus"]), "--version"]),
                size_mb=100,
            )
        ]

    def launch(self, place: Place) -> Sequence[Program]:
        targets = place.folder / "targets"
        targets.mkdir(exist_ok=True)
        given = list(place.options.get("targets", ()))
        (targets / "given.json").write_text(json.dumps([{"targets": given}] if given else []), encoding="utf-8")
        argv = [
            place.program("prometheus"),
            f"--config.file={_configure(place)}",
            f"--storage.tsdb.path={place.data}",
            f"--web.listen-address=127.0.0.1:{place.port}",
            "--web.enable-lifecycle",
            # what fires in the seconds before the first Alertmanager is known is sent again, not after a minute
            "--rules.alert.resend-delay=1s",
            f"--web.console.templates={_WEB}/consoles",
            f"--web.console.libraries={_WEB}/console_libraries",
            "--log.level=warn",
        ]
        return [Program(argv=argv)]

    def check(self, place: Place) -> None:
        wire.expect(200, place.port, "/-/ready")

    def url(self, place: Place) -> str:
        return f"http://127.0.0.1:{place.port}"


def _configure(place: Place) -> Path:
    """JSON is YAML, and needs no library."""
    interval = f"{int(float(place.options.get('scrape_interval_s', 1)) * 1000)}ms"
    discovered = {"files": [str(place.folder / "targets" / "*.json")], "refresh_interval": "1s"}
    configuration: dict[str, Any] = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "scrape_configs": [{"job_name": "targets", "honor_labels": True, "file_sd_configs": [discovered]}],
    }
    if place.options.get("alertmanagers"):
        listed = [{"targets": list(place.options["alertmanagers"])}]
        configuration["alerting"] = {"alertmanagers": [{"static_configs": listed}]}
    if place.options.get("rules"):
        rules = place.options["rules"]
        path = place.folder / "rules.yml"
        path.write_text(rules if isinstance(rules, str) else json.dumps(rules), encoding="utf-8")
        configuration["rule_files"] = [str(path)]
    path = place.folder / "prometheus.yml"
    path.write_text(json.dumps(configuration, indent=1), encoding="utf-8")
    return path


SERVER = Prometheus()
