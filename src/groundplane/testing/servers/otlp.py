"""A receiver of OpenTelemetry's protocol over HTTP, our own: `groundplane.testing.otlp_receiver` as a process.

It runs with this interpreter; `opentelemetry-proto`, which decodes, is taken from its environment or put into the
cache. `GET /received` tells what came. In memory alone, so a restart forgets it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import groundplane
from groundplane.core.errors import InvalidArgument
from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import Installation, Place, Program, Server, Source
from groundplane.testing.servers.sources import PyPI

VERSION = "1.45.2"


class Decoder(PyPI):
    """opentelemetry-proto: where the interpreter has it already, there; otherwise in the cache."""

    def find(self, folder: Path) -> Installation | None:
        try:
            found = importlib.metadata.distribution("opentelemetry-proto")
        except importlib.metadata.PackageNotFoundError:
            return super().find(folder)
        libraries = Path(str(found.locate_file("")))
        return Installation(origin="environment", version=found.version, programs={"libraries": libraries})


class Otlp(Server):
    """See the module."""

    name = "otlp"
    title = "OTLP receiver"
    durable = False
    stop_timeout_s = 5.0
    customary = ("OTEL_EXPORTER_OTLP_ENDPOINT",)

    def sources(self) -> Sequence[Source]:
        return [
            Decoder(
                f"opentelemetry-proto=={VERSION}",
                version=VERSION,
                programs={"libraries": ".", "decoder": "opentelemetry/proto"},
                read=lambda _: VERSION,
                size_mb=3,
                seconds=5,
                dependencies=True,
            )
        ]

    def launch(self, place: Place) -> Sequence[Program]:
        paths = [str(Path(groundplane.__file__).parent.parent), place.program("libraries")]
        argv = [sys.executable, "-m", "groundplane.testing.otlp_receiver", "--port", str(place.port)]
        return [Program(argv=argv, env={"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"})]

    def check(self, place: Place) -> None:
        wire.expect(200, place.port, "/healthz")

    def url(self, place: Place) -> str:
        return f"http://127.0.0.1:{place.port}"

    def urls(self, place: Place) -> Mapping[str, str]:
        return {**super().urls(place), "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}


def received(url: str, signal: str = "") -> list[dict[str, Any]]:
    """What the receiver at this URL got, oldest first: `{"signal", "headers", "request"}` each, the request in OTLP's
    JSON encoding. `signal`: `traces`, `metrics` or `logs` alone.
    """
    found: list[dict[str, Any]] = json.loads(_ask(url, "GET", f"/received?signal={signal}" if signal else "/received"))
    return found


def clear(url: str) -> None:
    """Forget what was received."""
    _ask(url, "DELETE", "/received")


def answer_with(url: str, status: int = 200, *, retry_after_s: float | None = None) -> None:
    """Let exports be answered with this status from now on; 200 = as they should be."""
    wait = {} if retry_after_s is None else {"retry_after_s": retry_after_s}
    _ask(url, "PUT", "/answer", json.dumps({"status": status, **wait}).encode())


def _ask(url: str, method: str, path: str, body: bytes = b"") -> bytes:
    address = urlsplit(url)
    if address.hostname is None or address.port is None:
        raise InvalidArgument(f"url: {url!r} is not http://HOST:PORT")
    status, answer = wire.http(method, address.port, path, host=address.hostname, body=body)
    if status != 200:
        raise InvalidArgument(f"{method} {path}: {status} {answer[:300].decode(errors='replace')}")
    return answer


SERVER = Otlp()
