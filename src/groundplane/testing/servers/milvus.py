"""Milvus, the standalone server with its own etcd and message store inside: the real one, not `milvus-lite`.

The wheel `milvus` carries its programs; they run as they are, without its Python part. What this version cannot: listen
on 127.0.0.1 alone (its gRPC ports are open on every address), end without a panic in its log (its stores are closed by
then), run for two users of one machine at once (it has files in `/run/milvus` or `/tmp/milvus`; they are removed at the
end). A search right after an insert needs `consistency_level="Strong"`, a collection `load_collection` after a start.
"""

from __future__ import annotations

import contextlib
import lzma
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from groundplane.core.errors import FailedPrecondition
from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import NotReady, Place, Program, Report, Server, Source
from groundplane.testing.servers.processes import alive
from groundplane.testing.servers.sources import PyPI

VERSION = "2.3.5"
_PORTS = (
    "client", "metrics", "etcd", "etcd_peer", "root_coord", "proxy_internal", "query_coord", "query_node",
    "index_coord", "index_node", "data_coord", "data_node",
)  # fmt: skip
_FIXED = (Path("/run/milvus"), Path("/tmp/milvus"))
_FIELD = re.compile(r"\{\{\s*(\w+)(?:\(\w+\))?\s*(?::\s*([^}]*?))?\s*\}\}")
_CHANGED = {
    "  ip: # if not": "  ip: 127.0.0.1 # if not",
    "    ttl: 30 # ttl": "    ttl: 3 # ttl",  # so long the parts of a former life are waited for
    "gracefulStopTimeout: 1800 #": "gracefulStopTimeout: 1 #",
    "checkHandoffInterval: 5000": "checkHandoffInterval: 500",
}


class Wheel(PyPI):
    """The wheel, its programs unpacked."""

    def install(self, folder: Path, report: Report) -> None:
        super().install(folder, report)
        packed = sorted((folder / "milvus" / "data" / "bin").glob("*.lzma"))
        report(f"unpacking {len(packed)} files")
        (folder / "server").mkdir()
        for one in packed:
            target = folder / "server" / one.stem
            with lzma.open(one) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            target.chmod(0o755)
            one.unlink()


class Milvus(Server):
    """See the module."""

    name = "milvus"
    title = "Milvus standalone"
    ports = _PORTS
    stop_timeout_s = 3.0

    def sources(self) -> Sequence[Source]:
        return [
            Wheel(
                f"milvus=={VERSION}",
                version=VERSION,
                programs={"milvus": "server/milvus", "settings": "milvus/data"},
                read=lambda _: VERSION,
                size_mb=250,
                seconds=15,
            )
        ]

    def launch(self, place: Place) -> Sequence[Program]:
        configuration = place.folder / "configuration"
        configuration.mkdir(exist_ok=True)
        shipped = Path(place.program("settings"))
        (place.folder / "logs").mkdir(exist_ok=True)
        shutil.copy(shipped / "glog.conf", configuration / "glog.conf")
        (configuration / "etcd.yaml").write_text(_etcd(place), encoding="utf-8")
        template = (shipped / "config.yaml.template").read_text(encoding="utf-8")
        (configuration / "milvus.yaml").write_text(_filled(template, place, configuration), encoding="utf-8")
        program = Path(place.program("milvus"))
        env = {
            "DEPLOY_MODE": "STANDALONE",
            "MILVUSCONF": str(configuration),
            "METRICS_PORT": str(place.ports["metrics"]),
            "LD_LIBRARY_PATH": str(program.parent),
        }
        return [Program(argv=[str(program), "run", "standalone", "-alias", _alias(place)], env=env)]

    def check(self, place: Place) -> None:
        body = wire.expect(200, place.ports["metrics"], "/healthz")
        if b"OK" not in body:
            raise NotReady(f"/healthz: {body[:200]!r}")

    def url(self, place: Place) -> str:
        return f"http://127.0.0.1:{place.port}"

    def forget(self, place: Place) -> None:
        """It writes the number of its process into folders that are fixed in the program; nothing reads it later."""
        for folder in _FIXED:
            for one in (*folder.glob(f"standalone-{_alias(place)}.pid"), *folder.glob("server_id_*")):
                number = one.name.removeprefix("server_id_")
                if not (number.isdigit() and alive(int(number))):
                    with contextlib.suppress(OSError):  # somebody else's, or gone by now
                        one.unlink()
            with contextlib.suppress(OSError):  # not empty, or not there
                folder.rmdir()


def _alias(place: Place) -> str:
    """Its name in those folders: instances of one machine have different ones."""
    return f"groundplane-{place.port}"


def _etcd(place: Place) -> str:
    client, peer = (f"http://127.0.0.1:{place.ports[name]}" for name in ("etcd", "etcd_peer"))
    settings = {
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"default={peer}",
    }
    return "".join(f"{name}: {value}\n" for name, value in settings.items())


def _filled(template: str, place: Place, configuration: Path) -> str:
    """The shipped configuration with this instance's ports and folders in it."""
    values: dict[str, str] = {f"{name}_port": str(port) for name, port in place.ports.items()}
    values |= {
        "proxy_port": str(place.port),
        "etcd_log_path": "stdout",
        "etcd_log_level": "warn",
        "etcd_data_dir": str(place.data / "etcd"),
        "local_storage_dir": str(place.data),
        "rocksmq_data_dir": str(place.data / "rocksmq"),
        "system_log_path": "",
    }
    text = _FIELD.sub(lambda found: values.get(found[1], found[2] or ""), template)
    for found, wanted in _CHANGED.items():
        if found not in text:
            raise FailedPrecondition(f"milvus: {found!r} is not in the configuration that version {VERSION} ships")
        text = text.replace(found, wanted)
    return text.replace("\netcd:\n", f"\netcd:\n  config:\n    path: {configuration / 'etcd.yaml'}\n", 1)


SERVER = Milvus()
