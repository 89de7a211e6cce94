"""Kafka: one broker that is its own controller (KRaft), from the jars that its makers publish.

From Maven's repository; a JDK of at least 17 runs it. Broker and controller listen on 127.0.0.1 only. The internal
topics have one replica and few partitions, groups form without the usual wait of three seconds. Both group protocols
work (`classic`, `consumer`). What was acknowledged survives kill and restart: it is in the files, though not synced.
"""

from __future__ import annotations

import base64
import re
import shutil
import struct
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

from groundplane.testing.servers import processes, wire
from groundplane.testing.servers.contract import Installation, NotReady, Place, Program, Report, Server, Source
from groundplane.testing.servers.sources import InstallFailed, execute, version_of

VERSION = "4.1.1"
JAVA_MIN = 17
_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Djava.awt.headless=true")
_LOGGING = tuple(
    f"-Dorg.slf4j.simpleLogger.{word}"
    for word in ("defaultLogLevel=warn", "showDateTime=true", "dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSX")
)
_METADATA, _METADATA_VERSION = 3, 1
_ANSWER_BYTES_MAX = 1 << 20


class MavenJars(Source):
    """Jars and all that they need, copied by Maven into the cache; pinned by a generated pom."""

    origin = "maven"
    version = VERSION
    size_mb = 54
    seconds = 40
    jars: Mapping[str, str] = {
        "org.apache.kafka:kafka_2.13": VERSION,
        "org.apache.kafka:kafka-tools": VERSION,
        "org.slf4j:slf4j-simple": "1.7.36",
    }

    @property
    def command(self) -> str:
        return f"mvn dependency:copy-dependencies of {', '.join(f'{name}:{v}' for name, v in self.jars.items())}"

    def find(self, folder: Path) -> Installation | None:
        jar, java = folder / "libs" / f"kafka_2.13-{VERSION}.jar", _java()
        if java is None or not jar.exists():
            return None
        programs = {"libs": folder / "libs", "java": Path(java)}
        return Installation(origin=self.origin, version=VERSION, programs=programs)

    def obstacle(self) -> str | None:
        if _java() is None:
            return f"no Java {JAVA_MIN} on PATH: apt-get install openjdk-17-jdk-headless maven"
        return None if shutil.which("mvn") else "Maven is not installed: apt-get install maven"

    def install(self, folder: Path, report: Report) -> None:
        maven = shutil.which("mvn")
        if maven is None:
            raise InstallFailed(str(self.obstacle()))
        pom = folder / "pom.xml"
        pom.write_text(_pom(self.jars), encoding="utf-8")
        target = f"-DoutputDirectory={folder / 'libs'}"
        goal = ["dependency:copy-dependencies", target, "-DincludeScope=runtime"]
        execute([maven, "--quiet", "--batch-mode", "--file", str(pom), *goal], report)


class Kafka(Server):
    """See the module."""

    name = "kafka"
    title = "Apache Kafka"
    ports = ("client", "controller")
    customary = ("KAFKA_BOOTSTRAP_SERVERS",)
    options: ClassVar[Mapping[str, str]] = {
        "settings": "Mapping of broker properties that are added, as in server.properties.",
        "heap_mb": "The Java heap, 256 where not given.",
    }

    def sources(self) -> Sequence[Source]:
        return [MavenJars()]

    def prepare(self, place: Place) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        words = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(_configure(place))]
        processes.run([*_java_words(place, heap_mb=128), *words], home=place.folder, account=place.account)

    def launch(self, place: Place) -> Sequence[Program]:
        heap_mb = int(place.options.get("heap_mb", 256))
        return [Program(argv=[*_java_words(place, heap_mb), "kafka.Kafka", str(_configure(place))])]

    def check(self, place: Place) -> None:
        """Asks for the cluster's metadata: a broker that does not take part yet is not in its own list."""
        client = b"groundplane"
        header = struct.pack(f">hhih{len(client)}s", _METADATA, _METADATA_VERSION, 1, len(client), client)
        request = header + struct.pack(">i", 0)
        with wire.dial(place.port) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", wire.exactly(connection, 4))
            if not 8 <= size <= _ANSWER_BYTES_MAX:
                raise NotReady(f"an answer of {size} bytes")
            _, brokers = struct.unpack_from(">ii", wire.exactly(connection, size))
        if brokers < 1:
            raise NotReady("the broker does not take part in its cluster yet")

    def url(self, place: Place) -> str:
        return f"kafka://127.0.0.1:{place.port}"

    def urls(self, place: Place) -> Mapping[str, str]:
        return {"GROUNDPLANE_TEST_KAFKA_URL": self.url(place), self.customary[0]: f"127.0.0.1:{place.port}"}


def _java_words(place: Place, heap_mb: int) -> list[str]:
    libraries = f"{place.program('libs')}/*"
    temporary = place.folder / "tmp"  # compressors unpack their native parts there
    temporary.mkdir(exist_ok=True)
    here = f"-Djava.io.tmpdir={temporary}"
    return [place.program("java"), f"-Xmx{heap_mb}m", *_JVM, *_LOGGING, here, "-cp", libraries]


def _configure(place: Place) -> Path:
    """Write server.properties; ports may have changed since the last start."""
    client, controller = place.ports["client"], place.ports["controller"]
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{client}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(place.data),
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        # a broker that was killed is let in again when the session of its former life is over
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        **{str(name): str(value) for name, value in place.options.get("settings", {}).items()},
    }
    path = place.folder / "server.properties"
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()), encoding="utf-8")
    return path


def _pom(jars: Mapping[str, str]) -> str:
    lines = []
    for name, version in jars.items():
        group, _, artifact = name.partition(":")
        inner = f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        lines.append(f"    <dependency>{inner}</dependency>")
    listed = "\n".join(lines)
    return f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>groundplane.testing</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <dependencies>
{listed}
  </dependencies>
</project>
"""


def _java() -> str | None:
    """A Java that is new enough, on PATH."""
    found = shutil.which("java")
    return found if found and _java_major(found) >= JAVA_MIN else None


@cache
def _java_major(java: str) -> int:
    found = re.match(r"\d+", version_of([java, "-version"], r'version "([^"]+)"'))
    return int(found.group()) if found else 0


SERVER = Kafka()
