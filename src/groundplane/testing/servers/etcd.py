"""etcd 3.4, from Debian; one node, without fsync."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import NotReady, Place, Program, Server, Source
from groundplane.testing.servers.sources import Debian, OnPath, version_of


def _read(programs: Mapping[str, Path]) -> str:
    return version_of([str(programs["etcd"]), "--version"])


def program(binary: str, data: Path, client: int, peer: int, *, words: Sequence[str] = ()) -> Program:
    """An etcd node of one, also as a companion of another server (`dataclasses.replace(…, companion=True)`)."""
    own, others = f"http://{wire.HOST}:{client}", f"http://{wire.HOST}:{peer}"
    argv = [
        binary, "--name", "n1", "--data-dir", str(data), "--listen-client-urls", own, "--advertise-client-urls", own,
        "--listen-peer-urls", others, "--initial-advertise-peer-urls", others, "--initial-cluster", f"n1={others}",
        "--unsafe-no-fsync", *words,
    ]  # fmt: skip
    return Program(argv=argv)


def check(port: int) -> None:
    """One try whether the node answers and is in order."""
    if json.loads(wire.expect(200, port, "/health")).get("health") not in ("true", True):
        raise NotReady("/health: not true")


class EtcdServer(Server):
    """etcd."""

    name = "etcd"
    title = "etcd"
    light = True
    ports = ("client", "peer")
    customary = ("ETCD_ENDPOINTS",)
    options: ClassVar[Mapping[str, str]] = {"arguments": "More words for the command line, as a list."}

    def sources(self) -> Sequence[Source]:
        programs = {"etcd": "etcd"}
        return (
            Debian("etcd-server", version="3.4", programs=programs, read=_read, size_mb=17, seconds=10),
            OnPath("etcd", minimum=(3, 4), version="3"),
        )

    def launch(self, place: Place) -> Sequence[Program]:
        words = [str(w) for w in place.options.get("arguments", ())]
        return [program(place.program("etcd"), place.data, place.port, place.ports["peer"], words=words)]

    def check(self, place: Place) -> None:
        check(place.port)

    def url(self, place: Place) -> str:
        return f"http://{wire.HOST}:{place.port}"


SERVER = EtcdServer()
