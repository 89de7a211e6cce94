"""The seven scenarios of discovery in a cluster, through the façade, against Kubernetes' real API server: full flow,
instances, cache, failover, concurrent lookups, with RPC, watchable.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from cluster_lab import Lab, lab_in, pod, pods
from groundplane.bus import Bus
from groundplane.bus.handlers import Handler
from groundplane.core.errors import Unavailable
from groundplane.services import Discovery, DiscoverySettings
from groundplane.services.drivers import open_source
from groundplane.services.drivers.kubernetes import KubernetesInstances
from groundplane.testing import Proxy, VirtualClock, eventually, together
from groundplane.testing.servers.contract import Running
from integration.server_lab import bring

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.integration,
    pytest.mark.k8s,
    pytest.mark.timeout(900),
    pytest.mark.req("SVC-04"),
]
UNWATCHED = DiscoverySettings(watch=False)
LONG = DiscoverySettings(cache_s=600)  # what it sees anew, it learned from the watch


@pytest.fixture(scope="session")
def built() -> None:
    bring("kubernetes")


@pytest.fixture
async def lab(anyio_backend: str, built: None, kubernetes_server: Running, unique_name: str) -> AsyncIterator[Lab]:
    async with lab_in(kubernetes_server, unique_name) as lab:
        yield lab


@pytest.fixture
async def source(lab: Lab) -> AsyncIterator[KubernetesInstances]:
    async with open_source(lab.url()) as source:
        assert isinstance(source, KubernetesInstances)
        yield source


async def ids(discovery: Discovery, service: str) -> list[str]:
    return [one.instance_id for one in (await discovery.find(service)).instances]


async def test_full_flow_from_the_first_endpoint_to_the_last(lab: Lab, source: KubernetesInstances) -> None:
    async with Discovery.open(source, LONG) as discovery:
        await discovery.synced()
        assert await ids(discovery, "quotes") == []
        with pytest.raises(Unavailable) as nobody:
            await discovery.select("quotes")
        assert nobody.value.reason == "no_instance"

        async def there(*wanted: str) -> None:
            async def seen() -> bool:
                return await ids(discovery, "quotes") == list(wanted)

            await eventually(seen, f"{wanted} are found")

        await lab.put("quotes", pods(2), ports={"rpc": 7000})
        await there("pod-1", "pod-2")
        chosen = await discovery.select("quotes")
        assert (chosen.metadata["address"], chosen.metadata["ports"]["rpc"]) == ("10.1.0.2", 7000)
        await lab.put("quotes", pods(1, first=2))
        await there("pod-2")
        await lab.remove("quotes")
        await there()


async def test_instances_three_and_one(lab: Lab, source: KubernetesInstances) -> None:
    await lab.put("quotes", pods(3))
    await lab.put("orders", pods(1, of="order"))
    async with Discovery.open(source) as discovery:
        assert await ids(discovery, "quotes") == ["pod-1", "pod-2", "pod-3"]
        assert await ids(discovery, "orders") == ["order-1"]
        chosen = Counter([(await discovery.select("quotes")).instance_id for _ in range(9)])
        assert chosen == {"pod-1": 3, "pod-2": 3, "pod-3": 3}
        assert {(await discovery.select("orders")).instance_id for _ in range(5)} == {"order-1"}


async def test_the_cache_asks_the_api_server_once_and_is_stale_and_says_so_while_it_is_away(lab: Lab) -> None:
    await lab.put("quotes", pods(2))
    with Proxy.to("127.0.0.1", lab.server.port) as proxy:
        url = lab.url(proxy.through(lab.server.url), timeout=5, connect_timeout=5)
        clock = VirtualClock()
        async with open_source(url) as source, Discovery.open(source, UNWATCHED, clock=clock) as discovery:
            assert isinstance(source, KubernetesInstances)
            sent = source.requests
            found = [await discovery.find("quotes") for _ in range(3)]
            assert [one.cached for one in found] == [False, True, True]
            assert source.requests - sent == 1
            await lab.put("quotes", pods(3))
            assert len((await discovery.find("quotes")).instances) == 2
            clock.advance(10)
            assert len((await discovery.find("quotes")).instances) == 3

            proxy.down()
            assert not (await discovery.find("quotes")).stale
            clock.advance(10)
            stale = await discovery.find("quotes")
            assert (stale.stale, len(stale.instances)) == (True, 3)
            assert re.search(
                r"takes no connection|the connection to \S+ .*broke", stale.error
            )  # a new one, or the kept
            with pytest.raises(Unavailable):
                await discovery.find("orders")
            proxy.restore()
            assert not (await discovery.find("quotes")).stale


async def test_failover_goes_to_who_is_ready(lab: Lab, source: KubernetesInstances) -> None:
    await lab.put("quotes", pods(2))
    async with Discovery.open(source, LONG) as discovery:
        await discovery.synced()
        assert (await discovery.select("quotes", "preferred", preferred="pod-1")).instance_id == "pod-1"
        first, second = pods(2)
        await lab.put("quotes", [pod("pod-1", "10.1.0.2", ready=False), second])

        async def failed_over() -> bool:
            return (await discovery.select("quotes", "preferred", preferred="pod-1")).instance_id == "pod-2"

        await eventually(failed_over)
        leaving = pod("pod-2", "10.1.0.3", ready=False, serving=True, terminating=True)
        await lab.put("quotes", [pod("pod-1", "10.1.0.2", ready=False), leaving])

        async def nobody() -> bool:
            return await ids(discovery, "quotes") == []

        await eventually(nobody)
        everybody = await discovery.find("quotes", healthy_only=False)
        assert [one.status for one in everybody.instances] == ["UNHEALTHY", "SHUTDOWN"]
        with pytest.raises(Unavailable):
            await discovery.select("quotes")
        await lab.put("quotes", [first, leaving])

        async def recovered() -> bool:
            return await ids(discovery, "quotes") == ["pod-1"]

        await eventually(recovered)


async def test_concurrent_lookups_share_one_question(lab: Lab, source: KubernetesInstances) -> None:
    await lab.put("quotes", pods(3))
    async with Discovery.open(source, UNWATCHED) as discovery:
        sent = source.requests
        found = await together(50, lambda _: ids(discovery, "quotes"))
        assert found == [["pod-1", "pod-2", "pod-3"]] * 50
        assert source.requests - sent == 1
        assert discovery.statistics().hits > 40


async def test_fifty_lookups_of_the_api_server_at_once(lab: Lab, source: KubernetesInstances) -> None:
    await lab.put("quotes", pods(3))
    found = await together(50, lambda _: source.instances("quotes"))
    assert [len(one) if isinstance(one, list) else one for one in found] == [3] * 50


async def test_with_rpc_who_is_found_in_the_cluster_is_called(
    lab: Lab, source: KubernetesInstances, tmp_path: Path
) -> None:
    """Pods serve under their own names; the cluster says which of them are ready, and the call goes to that one."""

    def method(instance: str) -> Handler:
        async def get(symbol: str) -> dict[str, str]:
            return {"symbol": symbol, "served_by": instance}

        return get

    await lab.put("quotes", pods(3))
    bus_of_pods = Bus.open("embedded://", state=tmp_path, name="quotes")
    bus_of_desk = Bus.open("embedded://", state=tmp_path, name="desk")
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(bus_of_pods)
        for one in await source.instances("quotes"):
            handlers = {"get": method(one.instance_id)}
            await stack.enter_async_context(served.serve("quotes", handlers, instance=one.instance_id))
        desk = await stack.enter_async_context(bus_of_desk)
        discovery = await stack.enter_async_context(Discovery.open(source, LONG))
        await discovery.synced()

        async def call() -> str:
            chosen = await discovery.select("quotes")
            answer = await desk.request("quotes", "get", {"symbol": "ACME"}, instance=chosen.instance_id)
            assert answer["symbol"] == "ACME"
            return str(answer["served_by"])

        assert Counter([await call() for _ in range(9)]) == {"pod-1": 3, "pod-2": 3, "pod-3": 3}
        first, second, _ = pods(3)
        await lab.put("quotes", [pod("pod-1", first["addresses"][0], ready=False), second])

        async def only_the_second() -> bool:
            return {await call() for _ in range(4)} == {"pod-2"}

        await eventually(only_the_second)
        called = await together(30, lambda _: call())
        assert set(called) == {"pod-2"}


async def test_a_service_is_watchable(lab: Lab, source: KubernetesInstances) -> None:
    """Twenty additions one after the other are all seen, only those of the service, and the cache follows."""
    async with Discovery.open(source, LONG) as discovery:
        await discovery.synced()
        seen: list[str] = []

        async def follow() -> None:
            async with aclosing(discovery.changes("quotes")) as changes:
                async for change in changes:
                    seen.append(f"{change.kind} {change.instance_id}".strip())

        following = asyncio.create_task(follow())
        try:
            await eventually(lambda: seen == ["synced"])
            for count in range(1, 21):
                await lab.put("quotes", pods(count))
                await lab.put("orders", pods(count, of="order"))
            await eventually(lambda: len(seen) >= 21)
            assert seen[1:] == [f"present pod-{n}" for n in range(1, 21)]

            async def all_of_them() -> bool:
                return len(await ids(discovery, "quotes")) == 20

            await eventually(all_of_them)
            await lab.remove("quotes")
            await eventually(lambda: len(seen) == 41)
            assert {one.split()[0] for one in seen[21:]} == {"gone"}
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def test_a_change_is_known_within_half_a_second(lab: Lab, source: KubernetesInstances) -> None:
    """The best of several: the machine may stand still for a while."""
    loop = asyncio.get_running_loop()
    taken: list[float] = []
    async with Discovery.open(source, LONG) as discovery:
        await discovery.synced()
        for count in range(1, 6):
            await ids(discovery, "quotes")
            await lab.put("quotes", pods(count))
            written = loop.time()

            async def known(count: int = count) -> bool:
                return len(await ids(discovery, "quotes")) == count

            await eventually(known)
            taken.append(loop.time() - written)
    assert min(taken) < 0.5, taken
