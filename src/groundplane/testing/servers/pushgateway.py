"""Prometheus' Pushgateway: keeps what short jobs push until it is scraped. In memory alone, so a restart forgets it."""

from __future__ import annotations

from collections.abc import Sequence

from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import Place, Program, Server, Source
from groundplane.testing.servers.sources import Debian, version_of


class Pushgateway(Server):
    """See the module."""

    name = "pushgateway"
    title = "Prometheus Pushgateway"
    accounts = ("prometheus",)
    durable = False

    def sources(self) -> Sequence[Source]:
        return [
            Debian(
                "prometheus-pushgateway",
                version="1",
                programs={"pushgateway": "prometheus-pushgateway"},
                read=lambda programs: version_of([str(programs["pushgateway"]), "--version"]),
                size_mb=15,
            )
        ]

    def launch(self, place: Place) -> Sequence[Program]:
        argv = [place.program("pushgateway"), f"--web.listen-address=127.0.0.1:{place.port}", "--log.level=warn"]
        return [Program(argv=argv)]

    def check(self, place: Place) -> None:
        wire.expect(200, place.port, "/-/ready")

    def url(self, place: Place) -> str:
        return f"http://127.0.0.1:{place.port}"


SERVER = Pushgateway()
