"""Prometheus' Alertmanager, alone (no cluster), which sends what fires to a caught mailbox or a webhook of the test.

Groups wait a tenth of a second and repeat each hour. Silences and the record of notifications are on the disk, written
at a polite stop and every fifteen minutes; alerts themselves are in memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import Place, Program, Server, Source
from groundplane.testing.servers.sources import Debian, version_of


class Alertmanager(Server):
    """See the module."""

    name = "alertmanager"
    title = "Prometheus Alertmanager"
    accounts = ("prometheus",)
    durable = False
    options: ClassVar[Mapping[str, str]] = {
        "smtp": "Address (`host:port`) of a mail server that gets each alert, without TLS.",
        "mail_to": "To whom the mail goes, `alerts@groundplane.test` where not given.",
        "webhook": "URL that gets each alert as JSON.",
        "group_wait_s": "Seconds until the first notification of a group, 0.1 where not given.",
    }

    def sources(self) -> Sequence[Source]:
        return [
            Debian(
                "prometheus-alertmanager",
                version="0.25",
                programs={"alertmanager": "prometheus-alertmanager"},
                read=lambda programs: version_of([str(programs["alertmanager"]), "--version"]),
                size_mb=40,
            )
        ]

    def launch(self, place: Place) -> Sequence[Program]:
        argv = [
            place.program("alertmanager"),
            f"--config.file={_configure(place)}",
            f"--storage.path={place.data}",
            f"--web.listen-address=127.0.0.1:{place.port}",
            "--cluster.listen-address=",
            "--log.level=warn",
        ]
        return [Program(argv=argv)]

    def check(self, place: Place) -> None:
        wire.expect(200, place.port, "/-/ready")

    def url(self, place: Place) -> str:
        return f"http://127.0.0.1:{place.port}"


def _configure(place: Place) -> Path:
    receiver: dict[str, Any] = {"name": "test"}
    if "smtp" in place.options:
        to = str(place.options.get("mail_to", "alerts@groundplane.test"))
        receiver["email_configs"] = [
            {
                "to": to,
                "from": "alertmanager@groundplane.test",
                "smarthost": str(place.options["smtp"]),
                "require_tls": False,
                "send_resolved": True,
            }
        ]
    if "webhook" in place.options:
        receiver["webhook_configs"] = [{"url": str(place.options["webhook"]), "send_resolved": True}]
    wait_ms = int(float(place.options.get("group_wait_s", 0.1)) * 1000)
    route = {"receiver": "test", "group_wait": f"{wait_ms}ms", "group_interval": "1s", "repeat_interval": "1h"}
    path = place.folder / "alertmanager.yml"
    path.write_text(json.dumps({"route": route, "receivers": [receiver]}, indent=1), encoding="utf-8")
    return path


SERVER = Alertmanager()
