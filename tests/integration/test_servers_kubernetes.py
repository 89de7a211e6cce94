"""The kit's API server as a judge of manifests: definitions of others installed, dry runs, refusals in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from groundplane.core.errors import FailedPrecondition, InvalidArgument, Unavailable
from groundplane.testing.go_modules import fetched
from groundplane.testing.kubernetes import Cluster, keda_crds, load
from groundplane.testing.servers.contract import Running, ServerMissing
from integration.server_lab import bring

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.req("KIT-01")]

_DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: actor, namespace: plane}
spec:
  selector: {matchLabels: {app: actor}}
  template:
    metadata: {labels: {app: actor}}
    spec:
      containers: [{name: sidecar, image: "groundplane:1", ports: [{containerPort: 9090}]}]
"""
_SCALED = """
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: actor, namespace: plane}
spec:
  scaleTargetRef: {name: actor}
  minReplicaCount: 0
  triggers:
    - type: metrics-api
      metadata: {url: "http://gateway/depth", valueLocation: depth, targetValue: "10"}
"""


@pytest.fixture(scope="session")
def built() -> None:
    bring("kubernetes")


@pytest.fixture(scope="session")
def cluster(built: None, kubernetes_server: Running) -> Cluster:
    return Cluster(kubernetes_server.url)


@pytest.fixture(scope="session")
def keda(cluster: Cluster) -> list[str]:
    try:
        return cluster.install_crds(keda_crds())
    except ServerMissing as error:
        pytest.skip(error.message)


def test_a_dry_run_stores_nothing(cluster: Cluster) -> None:
    assert cluster.dry_run(_DEPLOYMENT) == []
    with pytest.raises(FailedPrecondition, match=r'deployments\.apps "actor" not found'):
        cluster.get("/apis/apps/v1/namespaces/plane/deployments/actor")


def test_a_field_that_the_api_does_not_have_is_refused_by_its_path(cluster: Cluster) -> None:
    wrong = _DEPLOYMENT.replace("containerPort: 9090", "containerPort: 9090, potr: 1")
    (error,) = cluster.dry_run(wrong)
    assert error.startswith("Deployment plane/actor: ")
    assert "potr" in error


def test_a_value_that_validation_refuses_is_told(cluster: Cluster) -> None:
    (error,) = cluster.dry_run(_DEPLOYMENT.replace("matchLabels: {app: actor}", "matchLabels: {app: other}"))
    assert "`selector` does not match template `labels`" in error


def test_a_kind_that_the_server_does_not_know_is_told(cluster: Cluster) -> None:
    assert cluster.dry_run("{apiVersion: example.com/v1, kind: Nothing, metadata: {name: x}}") == [
        "Nothing x: apiVersion: 'example.com/v1' has no kind 'Nothing' on this server"
    ]


def test_manifests_of_keda_are_judged_by_kedas_own_definitions(cluster: Cluster, keda: list[str]) -> None:
    assert "scaledobjects.keda.sh" in keda
    assert cluster.dry_run(_DEPLOYMENT + "---" + _SCALED) == []
    (error,) = cluster.dry_run(_SCALED.replace("minReplicaCount: 0", "minReplicaCount: few"))
    assert "minReplicaCount" in error
    (error,) = cluster.dry_run(_SCALED.replace("scaleTargetRef: {name: actor}", "scaleTargetRf: {name: actor}"))
    assert "scaleTargetRef" in error or "scaleTargetRf" in error


def test_what_was_applied_is_there_and_may_be_applied_again(cluster: Cluster, unique_name: str) -> None:
    one: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": unique_name},
        "data": {"a": "b"},
    }
    assert cluster.apply(one) == []
    assert cluster.apply({**one, "data": {"a": "c"}}) == []
    assert cluster.get(f"/api/v1/namespaces/default/configmaps/{unique_name}")["data"] == {"a": "c"}


def test_folders_lists_and_several_documents_are_unfolded(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(_DEPLOYMENT + "---" + _SCALED)
    (tmp_path / "a.json").write_text('{"kind": "List", "items": [{"kind": "Service"}, {"kind": "Secret"}]}')
    (tmp_path / "note.txt").write_text("no manifest")
    assert [one["kind"] for one in load(tmp_path)] == ["Service", "Secret", "Deployment", "ScaledObject"]
    with pytest.raises(InvalidArgument, match="manifests: no YAML"):
        load("a: [")


def test_a_cluster_that_does_not_answer_is_unavailable_and_its_token_is_not_shown() -> None:
    with pytest.raises(InvalidArgument) as refused:
        Cluster("http://me:secret-word@127.0.0.1:1/")
    assert "secret-word" not in str(refused.value)
    with pytest.raises(Unavailable, match=r"GET https://127\.0\.0\.1:1/readyz"):
        Cluster("https://me:secret-word@127.0.0.1:1/").request("GET", "/readyz")


def test_a_path_that_leads_out_of_a_module_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="inner"):
        fetched("github.com/compose-spec/compose-go/v2", "v2.16.2", "../other")
