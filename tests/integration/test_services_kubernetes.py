"""Services of Kubernetes against its real API server: what is listed and watched, merged, lost and found again.

No controller runs in the kit's cluster: the test writes the EndpointSlices that a controller would.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cluster_lab import Lab, lab_in, pod, pods, watched
from groundplane.core.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unavailable
from groundplane.services.drivers import open_source
from groundplane.services.drivers.kubernetes import KubernetesInstances
from groundplane.services.port import InstanceSource, Status
from groundplane.testing import eventually
from groundplane.testing.kubernetes import load
from groundplane.testing.servers.contract import Running
from integration.server_lab import bring

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.integration,
    pytest.mark.k8s,
    pytest.mark.timeout(900),
    pytest.mark.req("SVC-04"),
]


@pytest.fixture(scope="session")
def built() -> None:
    bring("kubernetes")


@pytest.fixture
async def lab(anyio_backend: str, built: None, kubernetes_server: Running, unique_name: str) -> AsyncIterator[Lab]:
    async with lab_in(kubernetes_server, unique_name) as lab:
        yield lab


@pytest.fixture
async def source(lab: Lab) -> AsyncIterator[InstanceSource]:
    async with open_source(lab.url()) as source:
        yield source


async def test_what_the_cluster_has_is_listed(lab: Lab, source: InstanceSource) -> None:
    assert (await source.services(), await source.instances(), await source.instances("shop")) == ([], [], [])
    labels = {"app.kubernetes.io/version": "1.4"}
    await lab.put("shop", pods(3), labels=labels, ports={"http": 8080, "metrics": 9090})
    await lab.put("till", pods(1, of="till"))
    assert await source.services() == ["shop", "till"]
    found = await source.instances("shop")
    assert [one.instance_id for one in found] == ["pod-1", "pod-2", "pod-3"]
    assert [one.metadata["address"] for one in found] == ["10.1.0.2", "10.1.0.3", "10.1.0.4"]
    assert {(one.version, one.status) for one in found} == {("1.4", Status.ACTIVE)}
    assert found[0].metadata["ports"] == {"http": 8080, "metrics": 9090}
    assert found[0].last_heartbeat is None
    assert [one.instance_id for one in await source.instances("till")] == ["till-1"]
    assert len(await source.instances()) == 4


@pytest.mark.req("SVC-06")
async def test_the_command_lists_shows_and_watches_services_of_the_cluster(lab: Lab, tmp_path: Path) -> None:
    async def command(*words: str) -> list[dict[str, Any]]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "groundplane.cli", "services", *words, "--source", lab.url(), "--json",
            cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        return [json.loads(line) for line in out.splitlines()]

    await lab.put("shop", pods(2), labels={"app.kubernetes.io/version": "1.4"})
    (found,) = await command("list")
    assert [(one["serviceName"], one["health"], one["instances"]) for one in found["details"]] == [
        ("shop", "healthy", 2)
    ]
    (shown,) = await command("show", "shop")
    assert (shown["definition"], [one["instanceId"] for one in shown["instances"]]) == (None, ["pod-1", "pod-2"])
    told = await command("watch", "shop", "--count", "3")
    assert [(one["kind"], one.get("instanceId")) for one in told] == [
        ("present", "pod-1"), ("present", "pod-2"), ("synced", None),
    ]  # fmt: skip


async def test_slices_are_merged_and_a_pod_of_two_families_is_one_instance(lab: Lab, source: InstanceSource) -> None:
    await lab.put("shop", pods(2), name="shop-a")
    await lab.put("shop", pods(2, first=2), name="shop-b")
    await lab.put("shop", [pod("pod-1", "fd00::1")], name="shop-v6", family="IPv6", ports={"admin": 81})
    first, *others = await source.instances("shop")
    assert [one.instance_id for one in (first, *others)] == ["pod-1", "pod-2", "pod-3"]
    assert first.metadata["addresses"] == ["10.1.0.2", "fd00::1"]
    assert first.metadata["ports"] == {"admin": 81, "http": 8080}


async def test_conditions_are_told_as_statuses(lab: Lab, source: InstanceSource) -> None:
    endpoints = [
        pod("a", "10.1.0.1"),
        pod("b", "10.1.0.2", ready=False, serving=False),
        pod("c", "10.1.0.3", ready=False, serving=True, terminating=True),
    ]
    await lab.put("shop", endpoints)
    found = {one.instance_id: one for one in await source.instances("shop")}
    assert {name: one.status for name, one in found.items()} == {
        "a": Status.ACTIVE, "b": Status.UNHEALTHY, "c": Status.SHUTDOWN,
    }  # fmt: skip
    assert (found["c"].metadata["serving"], found["c"].metadata["terminating"]) == (True, True)


async def test_a_long_list_comes_in_pages_and_whole(
    lab: Lab, source: InstanceSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundplane.backends.kubernetes.client.PAGE", 2)
    for number in range(5):
        await lab.put("shop", pods(2, first=1 + 2 * number), name=f"shop-{number}")
    assert len(await source.instances("shop")) == 10


async def test_a_watch_tells_what_is_there_and_then_every_change(lab: Lab, source: InstanceSource) -> None:
    await lab.put("shop", pods(2))
    await lab.put("other", pods(1))
    async with watched(source, "shop") as seen:
        assert [(one.kind, one.instance_id) for one in seen.changes] == [
            ("present", "pod-1"), ("present", "pod-2"), ("synced", ""),
        ]  # fmt: skip
        await lab.put("shop", [*pods(1), pod("pod-2", "10.1.0.3", ready=False), pod("pod-3", "10.1.0.9")])
        await eventually(lambda: len(seen.changes) == 5)
        assert [(one.kind, one.instance_id) for one in seen.changes[3:]] == [("present", "pod-2"), ("present", "pod-3")]
        assert seen.instances["shop", "pod-2"].status is Status.UNHEALTHY
        await lab.remove("shop")
        await eventually(lambda: seen.names("shop") == [])
        assert [one.kind for one in seen.changes[5:]] == ["gone"] * 3
        assert {one.service_name for one in seen.changes} <= {"shop", ""}


async def test_an_endpoint_that_moves_between_slices_is_neither_gone_nor_doubled(
    lab: Lab, source: InstanceSource
) -> None:
    await lab.put("shop", pods(2), name="shop-a")
    async with watched(source, "shop") as seen:
        told = len(seen.changes)
        await lab.put("shop", pods(1), name="shop-b")
        await lab.put("shop", pods(1, first=2), name="shop-a")
        await lab.put("shop", [*pods(1), pod("pod-9", "10.1.9.9")], name="shop-b")
        await eventually(lambda: len(seen.changes) > told)
        assert [(one.kind, one.instance_id) for one in seen.changes[told:]] == [("present", "pod-9")]
        assert seen.names("shop") == ["pod-1", "pod-2", "pod-9"]


async def test_a_watch_of_everything_tells_of_services_that_come(lab: Lab, source: InstanceSource) -> None:
    async with watched(source) as seen:
        for number in range(20):
            await lab.put(f"shop-{number}", pods(1))
        await eventually(lambda: len(seen.instances) == 20)


async def test_only_what_the_selector_chooses_is_seen(lab: Lab) -> None:
    await lab.put("shop", pods(1), labels={"team": "red"})
    await lab.put("till", pods(1), labels={"team": "blue"})
    async with open_source(lab.url(selector="team%3Dred")) as source, watched(source) as seen:
        assert await source.services() == ["shop"]
        assert {service for service, _ in seen.instances} == {"shop"}


async def test_a_name_that_no_service_can_have_is_refused_before_anything_is_sent(
    lab: Lab, source: KubernetesInstances
) -> None:
    sent = source.requests
    for name in ("Shop", "a,b", "a=b", "", "x" * 64):
        with pytest.raises(InvalidArgument, match="service: "):
            await source.instances(name)
        with pytest.raises(InvalidArgument, match="service: "):
            async with source.watch(name):
                pass
    assert source.requests == sent


# Access ---------------------------------------------------------------------------------------------------------------


async def test_without_the_right_to_list_and_watch_it_is_refused_and_said_what_is_missing(lab: Lab) -> None:
    token = await lab.token("reader")

    async def refusal() -> PermissionDenied:
        with pytest.raises(PermissionDenied) as refused:
            async with open_source(lab.url_as(token)):
                pass
        assert refused.value.reason == "cluster_access_refused"
        assert "verbs list and watch on endpointslices of the group discovery.k8s.io" in refused.value.message
        assert f"system:serviceaccount:{lab.namespace}:reader" in refused.value.message
        assert token not in str(refused.value)
        return refused.value

    assert "listing" in (await refusal()).message
    await lab.allow("reader", "list")

    async def told_of_watching() -> bool:  # the server learns of the role a moment later
        return "watching" in (await refusal()).message

    await eventually(told_of_watching)
    await lab.allow("reader", "list", "watch")

    async def opened() -> bool:
        async with open_source(lab.url_as(token)) as source:
            return await source.services() == []

    await eventually(opened, tolerate=(PermissionDenied,))


async def test_the_manifests_of_the_documentation_allow_all_that_is_needed(lab: Lab, repository: Path) -> None:
    (text,) = re.findall(
        r"```yaml\n(.*?)```", (repository / "docs/howto/services-kubernetes.md").read_text(), re.DOTALL
    )
    token = await lab.token("default")
    await lab.apply(*load(text.replace("namespace: shop", f"namespace: {lab.namespace}")))

    async def opened() -> bool:
        async with open_source(lab.url_as(token)) as source:
            return await source.services() == []

    await eventually(opened, tolerate=(PermissionDenied,))


async def test_a_right_that_is_taken_away_ends_the_watch_with_the_refusal(lab: Lab) -> None:
    token = await lab.token("reader")
    await lab.allow("reader", "list", "watch")
    url = lab.url_as(token) + "&watch_timeout=1"

    async def opened() -> bool:
        async with open_source(url):
            return True

    await eventually(opened, tolerate=(PermissionDenied,))
    async with open_source(url) as source, watched(source) as seen:
        await lab.allow("reader", "list")
        await eventually(lambda: seen.error is not None)
        assert isinstance(seen.error, PermissionDenied)
        assert seen.error.reason == "cluster_access_refused"


async def test_a_token_that_nobody_knows_is_refused(lab: Lab) -> None:
    with pytest.raises(PermissionDenied) as refused:
        async with open_source(lab.url_as("wrong-token")):
            pass
    assert refused.value.reason == "cluster_login_refused"
    assert "wrong-token" not in str(refused.value)


async def test_a_pod_uses_its_service_account(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.crt").symlink_to(urlsplit(lab.server.url).query.removeprefix("ca="))
    (tmp_path / "token").write_text(await lab.token("reader"))
    (tmp_path / "namespace").write_text(lab.namespace)
    await lab.allow("reader", "list", "watch")
    await lab.put("shop", pods(1))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(lab.server.port))
    monkeypatch.setattr("groundplane.backends.kubernetes.login.SERVICE_ACCOUNT", str(tmp_path))

    async def services() -> list[str]:
        async with open_source("kubernetes://") as source:
            return await source.services()

    assert await eventually(services, tolerate=(PermissionDenied,)) == ["shop"]


async def test_a_kubeconfig_is_found_and_its_context_chosen(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.put("shop", pods(1))
    path = tmp_path / "config"
    path.write_text(lab.kubeconfig(context="mine"))
    monkeypatch.setenv("KUBECONFIG", f"/nowhere:{path}")
    async with open_source(f"kubernetes:///{lab.namespace}") as source:
        assert await source.services() == ["shop"]
    async with open_source("kubernetes:///?context=mine") as source:
        assert await source.services() == ["shop"]
    async with open_source(f"kubernetes:///?kubeconfig={path}") as source:
        assert await source.services() == []


async def test_a_server_that_is_not_trusted_is_not_talked_to(lab: Lab) -> None:
    parts = urlsplit(lab.server.url)
    with pytest.raises(FailedPrecondition) as refused:
        async with open_source(f"kubernetes://{parts.netloc}/{lab.namespace}"):
            pass
    assert refused.value.reason == "tls_failed"


async def test_what_speaks_no_tls_and_what_is_not_there_are_told_apart() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    plain = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = plain.sockets[0].getsockname()[1]
    async with plain:
        with pytest.raises(FailedPrecondition) as refused:
            async with open_source(f"kubernetes://me:x@127.0.0.1:{port}/"):
                pass
    assert refused.value.reason == "tls_failed"
    with pytest.raises(Unavailable) as away:
        async with open_source(f"kubernetes://me:x@127.0.0.1:{port}/"):
            pass
    assert away.value.reason == "cluster_unreachable"


# Going on ------------------------------------------------------------------------------------------------------------


async def test_a_quiet_watch_goes_on_after_the_server_ends_it_and_bookmarks_keep_it_young(lab: Lab) -> None:
    await lab.put("shop", pods(1))
    async with open_source(lab.url(watch_timeout=3)) as source, watched(source, "shop") as seen:
        for number in range(5):  # the cluster's state goes on, though nothing of this is watched
            await lab.put("other", pods(1, first=number))
        await eventually(lambda: source.statistics().resumed >= 2, timeout_s=20)
        found = source.statistics()
        assert (found.lists, found.relists, found.failures) == (1, 0, 0)
        assert found.bookmarks >= 1
        await lab.put("shop", pods(2))
        await eventually(lambda: seen.names("shop") == ["pod-1", "pod-2"])


async def test_closing_ends_a_watch_that_waits(lab: Lab) -> None:
    async with open_source(lab.url()) as source:
        async with source.watch("shop") as changes:
            assert (await anext(changes)).kind == "synced"
            waiting = asyncio.create_task(anext(changes))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        with pytest.raises(StopAsyncIteration):
            await anext(changes)
