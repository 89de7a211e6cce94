"""The servers of the kit that are large or built: started, used by their own client, killed, restarted, ended."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from integration.server_lab import goes_through_its_life, private

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.req("KIT-01")]


@pytest.mark.kafka
def test_kafka_keeps_what_it_acknowledged_over_kill_and_restart() -> None:
    kafka = pytest.importorskip("confluent_kafka", reason="confluent-kafka: pip install confluent-kafka")
    admin = pytest.importorskip("confluent_kafka.admin")
    with private("kafka", settings={"num.partitions": 3}) as server:
        address = {"bootstrap.servers": server.urls["KAFKA_BOOTSTRAP_SERVERS"], "log_level": 0}
        errors: list[object] = []
        producer = kafka.Producer({**address, "enable.idempotence": True, "compression.type": "zstd"})
        for n in range(50):
            producer.produce("orders", str(n).encode(), on_delivery=lambda error, _: error and errors.append(error))
        assert producer.flush(30) == 0
        assert not errors
        goes_through_its_life(server)
        consumer = kafka.Consumer(
            {**address, "group.id": "readers", "auto.offset.reset": "earliest", "group.protocol": "consumer"}
        )
        consumer.subscribe(["orders"])
        got: list[bytes] = []
        while len(got) < 50:
            batch = consumer.consume(50, timeout=30)
            assert batch, f"only {len(got)} of 50 within 30 s"
            got += [message.value() for message in batch if message.error() is None]
        consumer.close()
        assert sorted(map(int, got)) == list(range(50))
        topics = admin.AdminClient(address).list_topics("orders", timeout=10)
        assert list(topics.brokers) == [1]
        assert len(topics.topics["orders"].partitions) == 3


@pytest.mark.milvus
@pytest.mark.timeout(300)
def test_milvus_finds_the_nearest_vector_after_kill_and_restart() -> None:
    pytest.importorskip("pymilvus", reason="pymilvus: pip install pymilvus")
    with private("milvus") as server:
        put = """
            client.create_collection("points", dimension=4)
            client.insert("points", [{"id": n, "vector": [float(n == k) for k in range(4)]} for n in range(4)])
            print(nearest([0.1, 0.9, 0.0, 0.0]))
        """
        assert _asked(server.url, put) == ["1"]
        goes_through_its_life(server)
        got = """
            client.load_collection("points", timeout=60)
            print(client.get_server_version())
            print(nearest([0.0, 0.1, 0.0, 0.9]))
        """
        version, nearest = _asked(server.url, got)
        assert version.startswith(f"v{server.version}")
        assert nearest == "3"
        pid, alias = server.pid, f"standalone-groundplane-{server.port}.pid"
        assert _marks(pid, alias), "it has no files in its fixed folders any more: then nothing need be removed there"
    assert _marks(pid, alias) == []


def _asked(url: str, what: str) -> list[str]:
    """What lines of code print that have a client, in a process of their own: gRPC never leaves one that it was in, and
    opens descriptors again whenever that forks.
    """
    opened = f"""
import pymilvus
client = pymilvus.MilvusClient({url!r})
def nearest(vector):
    return client.search("points", data=[vector], limit=1, consistency_level="Strong")[0][0]["id"]
"""
    command = [sys.executable, "-c", opened + textwrap.dedent(what)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def _marks(pid: int, alias: str) -> list[Path]:
    """The files that Milvus has outside of its folder."""
    folders = (Path("/run/milvus"), Path("/tmp/milvus"))
    return [folder / name for folder in folders for name in (alias, f"server_id_{pid}") if (folder / name).exists()]


@pytest.mark.kubernetes
@pytest.mark.k8s
@pytest.mark.timeout(900)
def test_kubernetes_stores_what_lightkube_writes_over_kill_and_restart() -> None:
    lightkube = pytest.importorskip("lightkube", reason="lightkube: pip install lightkube")
    from lightkube.models.discovery_v1 import Endpoint, EndpointPort
    from lightkube.models.meta_v1 import ObjectMeta
    from lightkube.resources.core_v1 import ConfigMap
    from lightkube.resources.discovery_v1 import EndpointSlice

    with private("kubernetes") as server:
        path = Path(server.urls["KUBECONFIG"])
        with closing(_client(lightkube, path)) as client:
            client.create(ConfigMap(metadata=ObjectMeta(name="told", namespace="default"), data={"a": "b"}))
            labels = {"kubernetes.io/service-name": "web"}
            client.create(
                EndpointSlice(
                    metadata=ObjectMeta(name="pods", namespace="default", labels=labels),
                    addressType="IPv4",
                    endpoints=[Endpoint(addresses=["10.1.2.3"])],
                    ports=[EndpointPort(port=80)],
                )
            )
        goes_through_its_life(server)
        with closing(_client(lightkube, path)) as client:
            assert client.get(ConfigMap, "told").data == {"a": "b"}
            slices = list(client.list(EndpointSlice, labels=labels))
            assert [one.endpoints[0].addresses for one in slices] == [["10.1.2.3"]]
        path.write_text(path.read_text().replace(server.place.secret, "another"))
        with closing(_client(lightkube, path)) as stranger, pytest.raises(lightkube.ApiError, match="Unauthorized"):
            stranger.get(ConfigMap, "told")


def _client(lightkube: Any, path: Path) -> Any:
    return lightkube.Client(config=lightkube.KubeConfig.from_file(path).get())
