"""Manifests are taken by what they are for: an API server of Kubernetes that knows KEDA, and Compose's own schema."""

from __future__ import annotations

from typing import Any

import pytest

from deployed import SERVING, objects, plan
from groundplane.deploy import compose, kubernetes
from groundplane.testing.servers.contract import ServerMissing

pytestmark = pytest.mark.integration

VARIANTS: dict[str, dict[str, Any]] = {
    "scaled": {"gateway_replicas": 3, "replicas_min": 0},
    "plain": {"gateway_replicas": 1, "routes": {}, "replicas_min": 2, "replicas_max": 2},
    "serving": {"settings": SERVING, "serves": True, "routes": {}},
}


@pytest.fixture(scope="module")
def cluster(kubernetes_server: Any) -> Any:
    """The API server with the definitions of KEDA."""
    from groundplane.testing.kubernetes import Cluster, keda_crds

    found = Cluster(kubernetes_server.url)
    found.install_crds(keda_crds())
    return found


@pytest.mark.k8s
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_api_server_takes_every_manifest(cluster: Any, variant: str) -> None:
    files = kubernetes.render(kubernetes.place_of(plan(**VARIANTS[variant])))
    for name, text in files.items():
        assert cluster.dry_run(text) == [], name


@pytest.mark.k8s
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_api_server_would_have_refused_what_is_wrong(cluster: Any) -> None:
    files = kubernetes.render(kubernetes.place_of(plan()))
    assert cluster.dry_run(files["30-gateway.yaml"].replace("readinessProbe", "readynessProbe"))
    scaled = files["50-acme-actor-double.yaml"]
    assert cluster.dry_run(scaled.replace("maxReplicaCount: 10", "maxReplicaCount: ten"))
    assert cluster.dry_run(scaled.replace("scaleTargetRef", "scaleTarget"))


@pytest.fixture(scope="module")
def validate() -> Any:
    """Compose's own schema. A named skip where Go is missing, which fetches it."""
    from groundplane.testing.compose import validate

    try:
        validate({"services": {}})
    except ServerMissing as error:
        pytest.skip(str(error))
    return validate


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_compose_takes_the_file(validate: Any, variant: str) -> None:
    text = compose.render(plan(**VARIANTS[variant]))["compose.yaml"]
    assert validate(text) == []
    (document,) = objects({"compose.yaml": text})
    document["services"]["gateway-1"]["helthcheck"] = {}
    assert validate(document), "the schema would have refused a wrong key"


@pytest.mark.req("CORE-08.1")
@pytest.mark.k8s
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pods_are_admitted_where_only_restricted_ones_are(cluster: Any) -> None:
    """The strictest of Kubernetes' own pod security standards, enforced by the server."""
    strict = {"pod-security.kubernetes.io/enforce": "restricted"}
    home = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "strict", "labels": strict}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "strict"}}
    assert cluster.apply(home, account) == []
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": one["metadata"]["name"], "namespace": "strict"},
         "spec": one["spec"]["template"]["spec"]}
        for one in objects(kubernetes.render(kubernetes.place_of(plan()))) if one["kind"] in ("Deployment", "Job")
    ]  # fmt: skip
    assert len(pods) > 3
    assert cluster.apply(*pods, dry_run=True) == []
    pods[0]["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    assert "PodSecurity" in cluster.apply(*pods, dry_run=True)[0]
