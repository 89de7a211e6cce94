"""What every manifest keeps to: order, stops, probes, rights, references, and no secret in clear."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import msgspec
import pytest

from deployed import PASSWORD, SERVING, SETTINGS, objects, plan
from groundplane.core.settings import load
from groundplane.deploy import compose, kubernetes
from groundplane.deploy.dockerfile import dockerfile
from groundplane.deploy.plan import ADMIN_PORT
from groundplane.gateway import GatewaySettings
from groundplane.mesh.sidecar.config import load as load_sidecar


def _kubernetes(**more: Any) -> list[dict[str, Any]]:
    return objects(kubernetes.render(kubernetes.place_of(plan(**more), namespace="prod")))


def _compose(**more: Any) -> dict[str, Any]:
    return objects({"compose.yaml": compose.render(plan(**more))["compose.yaml"]})[0]


def _kind(found: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in found if one["kind"] == kind}


def _pods(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    owners = {**_kind(found, "Deployment"), **_kind(found, "Job")}
    return {name: one["spec"]["template"]["spec"] for name, one in owners.items()}


def test_no_secret_is_rendered_anywhere() -> None:
    texts = [*compose.render(plan()).values(), *kubernetes.render(kubernetes.place_of(plan())).values()]
    for text in texts:
        assert PASSWORD not in text
        assert not re.search(r"(amqp|postgresql|s3)://", text)


def _as_a_gateway_reads(found: list[dict[str, Any]], container: dict[str, Any]) -> GatewaySettings:
    """The settings that the gateway makes of its variables and its command."""
    given = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    shared = _kind(found, "ConfigMap")["acme-settings"]["data"]
    host = container["command"][container["command"].index("--host") + 1]
    return GatewaySettings.of(load(environ={**shared, **given, "GROUNDPLANE_HOST": host}).settings)


class TestKubernetes:
    @pytest.mark.req("CORE-08.2")
    def test_each_role_waits_for_the_migration_and_one_job_does_it(self) -> None:
        pods = _pods(_kubernetes())
        (job,) = _kind(_kubernetes(), "Job")
        assert pods[job]["restartPolicy"] == "Never"
        assert pods[job]["containers"][0]["command"][:3] == ["groundplane", "db", "upgrade"]
        for name, pod in pods.items():
            if name != job:
                assert [one["command"][:3] for one in pod["initContainers"]] == [["groundplane", "db", "check"]], name

    def test_the_migrations_name_changes_with_what_it_does_and_not_otherwise(self) -> None:
        names = [*_kind(_kubernetes(), "Job"), *_kind(_kubernetes(), "Job")]
        names += _kind(_kubernetes(image="acme:2.0"), "Job")
        assert names[0] == names[1] != names[2]

    @pytest.mark.req("CORE-08.1")
    def test_no_container_has_rights_or_writes_its_file_system(self) -> None:
        for name, pod in _pods(_kubernetes()).items():
            assert pod["securityContext"]["runAsNonRoot"] is True, name
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["automountServiceAccountToken"] is False
            for one in [*pod["containers"], *pod.get("initContainers", [])]:
                context = one["securityContext"]
                assert context["allowPrivilegeEscalation"] is False
                assert context["readOnlyRootFilesystem"] is True
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert set(one["resources"]) == {"requests", "limits"}

    @pytest.mark.req("MESH-18")
    def test_a_stop_outlasts_the_grace(self) -> None:
        for name in _kind(_kubernetes(), "Deployment"):
            assert _pods(_kubernetes())[name]["terminationGracePeriodSeconds"] > SETTINGS.grace_s

    def test_every_container_that_stays_is_probed(self) -> None:
        found = _kubernetes()
        for name in _kind(found, "Deployment"):
            for one in _pods(found)[name]["containers"]:
                assert {"livenessProbe", "readinessProbe"} <= set(one), (name, one["name"])

    def test_sidecar_and_runtime_share_a_socket_and_the_runtime_knows_no_url(self) -> None:
        pod = _pods(_kubernetes())["acme-actor-double"]
        sidecar, runtime = pod["containers"]
        assert (sidecar["name"], runtime["name"]) == ("sidecar", "runtime")
        shared = {"name": "run", "mountPath": "/run/groundplane"}
        assert all(shared in one["volumeMounts"] for one in (sidecar, runtime))
        assert not any("URL" in variable["name"] for variable in runtime["env"])
        assert "envFrom" not in runtime
        refs = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in sidecar["env"] if one["name"].endswith("_URL")}
        assert set(refs) == {f"GROUNDPLANE_{port}_URL" for port in ("QUEUES", "JOBS", "LEDGER", "BLOBS")}
        assert all(ref == {"name": "acme-urls", "key": name} for name, ref in refs.items())

    def test_what_an_app_serves_is_served_by_processes_that_know_the_bus_and_are_probed(self) -> None:
        found = _kubernetes(settings=SERVING, serves=True, services_replicas=3)
        assert _kind(found, "Deployment")["acme-services"]["spec"]["replicas"] == 3
        (one,) = _pods(found)["acme-services"]["containers"]
        assert one["command"] == ["groundplane", "run", "deploy_app:app", "--role", "services"]
        environment = {variable["name"]: variable for variable in one["env"]}
        assert {"GROUNDPLANE_KV_URL", "GROUNDPLANE_BUS_URL", "GROUNDPLANE_ACTOR_ADMIN_HOST"} <= set(environment)
        assert environment["GROUNDPLANE_ACTOR_ADMIN_PORT"]["value"] == str(ADMIN_PORT)
        assert one["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": ADMIN_PORT}
        assert "acme-services" in _kind(found, "PodDisruptionBudget")
        for name, pod in _pods(found).items():  # actors and the gateway may ask services
            asking = [one["name"] for one in pod["containers"][0]["env"]]
            assert "GROUNDPLANE_BUS_URL" in asking, name
        assert "acme-services" not in _kind(_kubernetes(), "Deployment")

    def test_the_sidecars_document_is_what_a_sidecar_reads(self) -> None:
        config = _kind(_kubernetes(), "ConfigMap")["acme-actor-double"]
        read = load_sidecar(["--config", config["data"]["sidecar.json"]], {"GROUNDPLANE_QUEUES_URL": "amqp://broker/"})
        (spec,) = [actor for actor in plan().actors if actor.name == "double"]
        assert read.actor == spec
        assert (read.limits.grace_s, read.namespace, read.queues) == (20.0, "acme", "amqp://broker/")

    def test_the_shared_settings_are_what_a_role_reads(self) -> None:
        data = _kind(_kubernetes(), "ConfigMap")["acme-settings"]["data"]
        assert load(environ=data).settings.grace_s == SETTINGS.grace_s
        assert load(environ=data).settings.name == "acme"

    def test_an_actor_is_scaled_by_one_number(self) -> None:
        scaled = _kind(_kubernetes(replicas_min=0, backlog=5), "ScaledObject")
        assert len(scaled) == len(plan().actors)
        spec = scaled["acme-actor-double"]["spec"]
        (trigger,) = spec["triggers"]
        assert trigger["metadata"]["url"] == f"http://acme-admin.prod.svc:{ADMIN_PORT}/depth/double"
        assert (trigger["metadata"]["valueLocation"], trigger["metadata"]["targetValue"]) == ("depth", "5")
        assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 10)
        assert spec["scaleTargetRef"]["name"] in _kind(_kubernetes(), "Deployment")

    def test_what_is_scaled_has_no_number_of_its_own_and_the_rest_has(self) -> None:
        deployments = _kind(_kubernetes(), "Deployment")
        assert "replicas" not in deployments["acme-actor-double"]["spec"]
        place = kubernetes.place_of(plan(replicas_min=3), keda=False)
        found = objects(kubernetes.render(place))
        assert _kind(found, "Deployment")["acme-actor-double"]["spec"]["replicas"] == 3
        assert not _kind(found, "ScaledObject")

    def test_more_than_one_pod_has_a_disruption_budget(self) -> None:
        assert "acme-gateway" not in _kind(_kubernetes(gateway_replicas=1), "PodDisruptionBudget")
        budgets = _kind(_kubernetes(), "PodDisruptionBudget")
        assert {"acme-gateway", "acme-actor-double"} <= set(budgets)
        found = objects(kubernetes.render(kubernetes.place_of(plan(gateway_replicas=1), keda=False)))
        assert not _kind(found, "PodDisruptionBudget")

    def test_each_selector_selects_the_pods_of_one_deployment(self) -> None:
        found = _kubernetes()
        labels = {
            name: one["spec"]["template"]["metadata"]["labels"] for name, one in _kind(found, "Deployment").items()
        }
        for name, one in _kind(found, "Deployment").items():
            selector = one["spec"]["selector"]["matchLabels"]
            assert [other for other in labels if selector.items() <= labels[other].items()] == [name]
        for name, one in _kind(found, "PodDisruptionBudget").items():
            selector = one["spec"]["selector"]["matchLabels"]
            assert [other for other in labels if selector.items() <= labels[other].items()] == [name]

    def test_an_actors_own_name_can_be_read_back(self) -> None:
        found = {
            one["metadata"]["annotations"]["groundplane/actor"]
            for one in _kubernetes() if one["kind"] == "Deployment" and "annotations" in one["metadata"]
        }  # fmt: skip
        assert found == {actor.name for actor in plan().actors}

    def test_gateways_know_their_callers_and_the_names_of_their_service(self) -> None:
        for auth, wanted in (("none", "keys"), ("keys", "keys"), ("keys+oauth", "keys+oauth")):
            oauth = {"issuer": "https://login.example.com", "public_url": "https://gateway.example.com"}
            found = _kubernetes(settings=msgspec.structs.replace(SETTINGS, auth=auth, **oauth))
            (gateway,) = _pods(found)["acme-gateway"]["containers"]
            variables = {one["name"]: one.get("value") for one in gateway["env"]}
            assert variables["GROUNDPLANE_AUTH"] == wanted
            assert "GROUNDPLANE_AUTH" not in _kind(found, "ConfigMap")["acme-settings"]["data"]
            names = ["acme-gateway", *(f"acme-gateway.prod{end}" for end in ("", ".svc", ".svc.cluster.local"))]
            assert variables["GROUNDPLANE_ALLOWED_HOSTS"] == ",".join([*names, "gateway.example.com"])
            assert _as_a_gateway_reads(found, gateway).hosts >= set(names)

    def test_the_service_leads_to_the_gateways_own_port(self) -> None:
        found = _kubernetes()
        (gateway,) = _pods(found)["acme-gateway"]["containers"]
        ports = {one["name"]: one["containerPort"] for one in gateway["ports"]}
        (port,) = _kind(found, "Service")["acme-gateway"]["spec"]["ports"]
        assert str(ports[port["targetPort"]]) == gateway["command"][gateway["command"].index("--port") + 1]
        assert set(_kind(found, "Service")) == {"acme-gateway", "acme-admin"}
        assert "sessionAffinity" not in _kind(found, "Service")["acme-gateway"]["spec"]

    @pytest.mark.parametrize(("grace_s", "asked_s", "delay_s"), [(20.0, 0.0, 5.0), (4.0, 0.0, 2.0), (60.0, 12.5, 12.5)])
    def test_a_gateway_serves_on_until_the_cluster_knows_that_it_stops(
        self, grace_s: float, asked_s: float, delay_s: float
    ) -> None:
        settings = msgspec.structs.replace(SETTINGS, grace_s=grace_s, drain_delay_s=asked_s)
        found = _kubernetes(settings=settings)
        pod = _pods(found)["acme-gateway"]
        (gateway,) = pod["containers"]
        read = _as_a_gateway_reads(found, gateway)
        assert (read.drain_delay_s, read.grace_s) == (delay_s, grace_s)
        assert pod["terminationGracePeriodSeconds"] >= grace_s + 10
        assert "lifecycle" not in gateway, "a hook would wait before the signal, and the gateway waits after it"
        probe = gateway["readinessProbe"]
        if delay_s >= 5:
            assert probe["periodSeconds"] * probe["failureThreshold"] < delay_s
        rolling = _kind(found, "Deployment")["acme-gateway"]["spec"]["strategy"]["rollingUpdate"]
        assert (rolling["maxUnavailable"], rolling["maxSurge"]) == (0, 1)

    def test_each_probe_asks_what_it_is_for(self) -> None:
        found = _kubernetes()
        for name in ("acme-gateway", "acme-ends", "acme-actor-double"):
            probed = _pods(found)[name]["containers"][0]
            paths = [probed[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")]
            assert paths == ["/startupz", "/livez", "/readyz"], name

    def test_pods_are_replaced_when_their_settings_change(self) -> None:
        def marks(**more: Any) -> dict[str, str]:
            deployments = _kind(_kubernetes(**more), "Deployment")
            return {
                name: one["spec"]["template"]["metadata"]["annotations"]["groundplane/settings"]
                for name, one in deployments.items()
            }

        before, after = marks(), marks(settings=msgspec.structs.replace(SETTINGS, hops_max=65))
        assert before.keys() == after.keys()
        assert not set(before.values()) & set(after.values())


class TestCompose:
    def test_the_proxy_asks_every_gateway_and_is_all_that_is_published(self) -> None:
        document = _compose(gateway_replicas=3)
        names = ["gateway-1", "gateway-2", "gateway-3"]
        services = document["services"]
        assert [name for name in services if name.startswith("gateway")] == names
        assert {name for name, one in services.items() if "ports" in one} == {"proxy"}
        assert list(services["proxy"]["depends_on"]) == names
        for name in names:
            assert f"server {name}:8080 " in document["configs"]["nginx"]["content"]
            assert services[name]["environment"]["GROUNDPLANE_AUTH"] == "keys"
            assert services[name]["command"][services[name]["command"].index("--host") + 1] == "0.0.0.0"
        assert "htpasswd" not in str(document)

    @pytest.mark.req("CORE-08.2")
    def test_the_migration_is_done_before_the_others_start(self) -> None:
        services = _compose()["services"]
        assert services["migration"]["restart"] == "no"
        for name, one in services.items():
            if name != "migration" and not name.endswith("-runtime") and name != "proxy":
                assert one["depends_on"]["migration"] == {"condition": "service_completed_successfully"}, name

    @pytest.mark.req("CORE-08.1")
    def test_no_service_has_rights_or_writes_its_file_system(self) -> None:
        for name, one in _compose()["services"].items():
            assert one["read_only"] is True, name
            assert one["cap_drop"] == ["ALL"]
            assert one.get("user") == "10001:10001" or name == "proxy"

    def test_what_an_app_serves_is_served_by_processes_that_know_the_bus(self) -> None:
        document = _compose(settings=SERVING, serves=True, services_replicas=3)
        one = document["services"]["services"]
        assert one["command"] == ["groundplane", "run", "deploy_app:app", "--role", "services"]
        assert one["deploy"] == {"replicas": 3}
        assert one["environment"]["GROUNDPLANE_BUS_URL_FILE"] == "/run/secrets/bus_url"
        assert {"bus_url", "kv_url"} <= set(document["secrets"])
        assert "services" not in _compose()["services"]

    def test_urls_are_files_of_secrets(self) -> None:
        document = _compose()
        for name, one in document["services"].items():
            files = {k: v for k, v in one.get("environment", {}).items() if k.endswith("_URL_FILE")}
            knows = not name.endswith("-runtime") and name != "proxy"
            assert len(files) == (4 if knows else 0), name
            assert {value.removeprefix("/run/secrets/") for value in files.values()} <= set(document["secrets"])
        assert all(set(one) == {"file"} for one in document["secrets"].values())

    @pytest.mark.req("MESH-18")
    def test_a_sidecar_stops_before_its_runtime_and_within_the_time(self) -> None:
        services = _compose()["services"]
        for actor in plan().actors:
            assert f"{actor.name}-runtime" in services[f"{actor.name}-sidecar"]["depends_on"]
            assert int(services[f"{actor.name}-sidecar"]["stop_grace_period"].removesuffix("s")) > SETTINGS.grace_s

    def test_dollars_are_not_taken_for_variables(self) -> None:
        found = compose.document(plan(routes={"t.yaml": "a: ${HOME} $5"}), publish="127.0.0.1:8080")
        assert found["configs"]["routes-t.yaml"]["content"] == "a: $${HOME} $$5"

    def test_the_sidecars_document_is_what_a_sidecar_reads(self) -> None:
        content = _compose()["configs"]["lookUp-sidecar"]["content"].replace("$$", "$")
        assert load_sidecar(["--config", content], {}).actor.key == "customer"
        assert json.loads(content)["admin_port"] == ADMIN_PORT


@pytest.mark.req("CORE-08.1")
def test_the_image_has_what_speaks_to_the_servers_of_the_plan() -> None:
    assert "groundplane[gateway,rabbitmq,postgres,s3]==" in dockerfile(plan())
    assert "groundplane[gateway,rabbitmq,postgres,s3,nats]==" in dockerfile(plan(SERVING, serves=True))


def test_the_image_runs_as_a_user_without_rights_and_copies_what_it_names() -> None:
    lines = [line for line in dockerfile(plan(folder="/srv/app")).splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    assert lines.index("USER 10001:10001") < lines.index('ENTRYPOINT ["groundplane"]')
    assert "WORKDIR /srv/app" in lines
    assert not any(line.startswith("ADD ") or "latest" in line or "sudo" in line for line in lines)
    assert all("--no-cache-dir" in line for line in lines if "pip install" in line)


def test_the_secrets_beside_the_file_never_get_into_the_image() -> None:
    ignored = compose.render(plan())["Dockerfile.dockerignore"].splitlines()
    assert {f"**/{compose.SECRETS_FOLDER}", "**/htpasswd", "**/.groundplane"} <= set(ignored)


def test_the_shell_of_the_image_is_shell() -> None:
    text = dockerfile(plan()).replace("\\\n", "")
    commands = [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN ")]
    assert len(commands) == 4
    for command in commands:
        checked = subprocess.run(["/bin/sh", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
