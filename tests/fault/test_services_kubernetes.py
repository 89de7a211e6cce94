"""Services of Kubernetes while connections break, fall silent, and the cluster's history is compacted away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster_lab import Lab, lab_in, pod, pods, watched
from groundplane.core.errors import Unavailable
from groundplane.services.drivers import open_source
from groundplane.testing import Proxy, eventually
from groundplane.testing.servers.contract import Running
from integration.server_lab import bring

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.fault,
    pytest.mark.k8s,
    pytest.mark.timeout(900),
    pytest.mark.req("SVC-04"),
]
QUICK = {"timeout": 2, "connect_timeout": 1, "watch_timeout": 2, "backoff": "10ms", "backoff_max": "200ms"}


@pytest.fixture(scope="session")
def built() -> None:
    bring("kubernetes")


@pytest.fixture(scope="module")
def forgetful(built: None, own_server_of_module: object) -> Running:
    """An API server that keeps no changes of slices in memory: what etcd has forgotten is gone at once."""
    assert callable(own_server_of_module)
    words = ["--watch-cache-sizes=endpointslices.discovery.k8s.io#0"]
    server: Running = own_server_of_module("kubernetes", arguments=words)
    return server


@pytest.fixture
async def lab(anyio_backend: str, forgetful: Running, unique_name: str) -> AsyncIterator[Lab]:
    async with lab_in(forgetful, unique_name) as lab:
        yield lab


async def test_a_cut_connection_is_made_again_and_nothing_is_missed(lab: Lab) -> None:
    await lab.put("shop", pods(1))
    with Proxy.to("127.0.0.1", lab.server.port) as proxy:
        url = lab.url(proxy.through(lab.server.url), **{**QUICK, "watch_timeout": 60})  # each end is a cut
        async with open_source(url) as source, watched(source, "shop") as seen:
            for count in range(2, 7):
                proxy.cut()
                await lab.put("shop", pods(count))
                await eventually(lambda count=count: len(seen.names("shop")) == count)
            found = source.statistics()
            assert (found.lists, found.relists) == (1, 0), "each went on from its version"
            assert found.failures >= 5


async def test_while_the_server_is_away_lookups_fail_and_the_watch_is_not_flowing(lab: Lab) -> None:
    await lab.put("shop", pods(1))
    with Proxy.to("127.0.0.1", lab.server.port) as proxy:
        url = lab.url(proxy.through(lab.server.url), **QUICK)
        async with open_source(url) as source, watched(source, "shop") as seen:
            await eventually(source.flowing)
            proxy.down()
            await eventually(lambda: not source.flowing())
            with pytest.raises(Unavailable):
                await source.instances("shop")
            await lab.put("shop", pods(2))
            assert seen.names("shop") == ["pod-1"]
            proxy.restore()
            await eventually(lambda: seen.names("shop") == ["pod-1", "pod-2"])
            await eventually(source.flowing)


@pytest.mark.parametrize("fault", ["half_open", "stall"])
async def test_a_connection_that_went_dead_unseen_is_noticed(lab: Lab, fault: str) -> None:
    await lab.put("shop", pods(1))
    with Proxy.to("127.0.0.1", lab.server.port) as proxy:
        url = lab.url(proxy.through(lab.server.url), **{**QUICK, "watch_timeout": 1, "timeout": 1})
        async with open_source(url) as source, watched(source, "shop") as seen:
            getattr(proxy, fault)()
            await lab.put("shop", pods(2))
            await eventually(lambda: not source.flowing(), timeout_s=20)
            with pytest.raises(Unavailable):
                await source.instances("shop")
            proxy.restore()
            await eventually(lambda: seen.names("shop") == ["pod-1", "pod-2"], timeout_s=20)


async def test_a_call_that_is_cancelled_while_it_connects_leaves_no_socket(lab: Lab) -> None:
    with Proxy.to("127.0.0.1", lab.server.port) as proxy:
        async with open_source(lab.url(proxy.through(lab.server.url))) as source:
            proxy.cut()
            proxy.stall("to_client")
            for _ in range(3):
                accepted = proxy.traffic().accepted
                call = asyncio.create_task(source.instances("shop"))
                await eventually(lambda accepted=accepted: proxy.traffic().accepted > accepted)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call


async def test_after_a_compaction_it_lists_again_and_tells_what_changed_meanwhile(lab: Lab) -> None:
    await lab.put("shop", pods(3))
    await lab.put("till", pods(1))
    with Proxy.to("127.0.0.1", lab.server.port) as proxy:
        url = lab.url(proxy.through(lab.server.url), **QUICK)
        async with open_source(url) as source, watched(source) as seen:
            for round_ in range(3):
                told = len(seen.changes)
                proxy.down()
                await eventually(lambda: not source.flowing())
                await lab.put("shop", [*pods(1), pod("pod-2", "10.1.0.3", ready=round_ % 2 == 1)])
                await lab.put("shop", [*pods(1), pod("pod-2", "10.1.0.3", ready=round_ % 2 == 1), *pods(1, first=4)])
                if round_ == 0:
                    await lab.remove("till")
                await lab.compact()
                proxy.restore()
                wanted = 1 + round_
                await eventually(lambda wanted=wanted: source.statistics().relists == wanted)
                await eventually(lambda: seen.names("shop") == ["pod-1", "pod-2", "pod-4"])
                first = [("present", "shop", "pod-4"), ("gone", "shop", "pod-3"), ("gone", "till", "pod-1")]
                expected = [("present", "shop", "pod-2"), *(first if round_ == 0 else [])]
                await eventually(lambda told=told, expected=expected: len(seen.changes) >= told + len(expected))
                changes = [(one.kind, one.service_name, one.instance_id) for one in seen.changes[told:]]
                assert changes == expected
            await lab.put("shop", pods(5))
            await eventually(lambda: len(seen.names("shop")) == 5)
            assert source.statistics().relists == 3, "it goes on from the new list"


async def test_a_list_whose_version_is_compacted_between_two_pages_begins_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundplane.backends.kubernetes.client.PAGE", 2)
    for number in range(3):
        await lab.put("shop", pods(2, first=1 + 2 * number), name=f"shop-{number}")
    async with open_source(lab.url()) as source:
        pages = source.requests
        ask = source.native.get
        compacted: list[int] = []

        async def compacting(*words: object, **more: object) -> object:
            answer = await ask(*words, **more)
            if not compacted:
                await lab.put("other", pods(1))
                compacted.append(await lab.compact())
            return answer

        monkeypatch.setattr(source.native, "get", compacting)
        assert len(await source.instances("shop")) == 6
        assert source.requests - pages == 4, "a page, a refusal, two pages"
