"""Several NATS servers that are one cluster, each a private server of its own: it may be killed, frozen, restarted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from groundplane.core.errors import Unavailable
from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import NotReady, Running
from groundplane.testing.servers.ports import Ports

_LOOK_AGAIN_S = 0.1
_ROUTES = 4
"""To each other node: three that accounts share, and the system's own."""
PATIENCE_S = 60.0


class NatsCluster:
    """A cluster whose nodes run on this machine. Methods block."""

    def __init__(self, nodes: Sequence[Running]) -> None:
        self.nodes = list(nodes)

    @classmethod
    @contextmanager
    def open(cls, own_server: Callable[..., Running], *, nodes: int = 3) -> Iterator[NatsCluster]:
        """Start the nodes by `own_server` (the fixture) side by side; given when they have a leader and are current.
        Whoever owns the servers ends them.
        """
        ports = Ports()
        try:
            routes = [ports.take() for _ in range(nodes)]
            with ThreadPoolExecutor(nodes) as pool:
                started = [
                    pool.submit(own_server, "nats", cluster={"ports": routes, "node": node}) for node in range(nodes)
                ]
            cluster = cls([one.result() for one in started])
            cluster.wait_current()
            yield cluster
        finally:
            ports.release()

    def __repr__(self) -> str:
        return f"<NatsCluster {', '.join(map(repr, self.nodes))}>"

    @property
    def url(self) -> str:
        """All nodes, in their order."""
        return self.url_from(0)

    def url_from(self, node: int) -> str:
        """All nodes, that one first: a client goes to it as long as it can."""
        turned = self.nodes[node:] + self.nodes[:node]
        return f"nats://{','.join(f'{wire.HOST}:{one.port}' for one in turned)}"

    def wait_current(self, timeout_s: float = PATIENCE_S) -> None:
        """Until every node runs and has all that is stored, and each stream has a leader that every node follows.
        `unavailable` with the last obstacle after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while (why := self._obstacle()) is not None:
            if time.monotonic() > deadline:
                raise Unavailable(f"nats: the cluster is not whole within {timeout_s:g} s: {why}")
            time.sleep(_LOOK_AGAIN_S)

    def leader_of(self, stream: str) -> int:
        """The node that leads a stream, as most see it; -1 while none does."""
        seen = [self._leaders(node).get(stream, "") for node in self.nodes if node.pid]
        named = max(set(seen), key=seen.count, default="")
        return int(named.removeprefix("n")) if named else -1

    def _obstacle(self) -> str | None:
        for node in self.nodes:
            try:
                wire.expect(200, node.ports["monitor"], "/healthz")
                routes = int(_asked(node, "/routez")["num_routes"])
            except (NotReady, OSError) as error:
                return f"{node!r}: {error}"
            if routes < _ROUTES * (len(self.nodes) - 1):
                return f"{node!r}: has {routes} routes"
        seen: dict[str, set[str]] = {}
        for node in self.nodes:
            for stream, leader in self._leaders(node).items():
                seen.setdefault(stream, set()).add(leader)
        unsure = {stream: leaders for stream, leaders in seen.items() if len(leaders) > 1 or "" in leaders}
        return f"who leads is not agreed on: {unsure}" if unsure else None

    def _leaders(self, node: Running) -> dict[str, str]:
        """Who leads what, as this node sees it: the cluster itself as ``, and each stream."""
        try:
            answer = _asked(node, "/jsz?accounts=true&streams=true")
        except (NotReady, OSError):
            return {"": ""}
        found = {"": _leader(answer.get("meta_cluster"))}
        for account in answer.get("account_details") or ():
            found |= {one["name"]: _leader(one.get("cluster")) for one in account.get("stream_detail") or ()}
        return found


def _asked(node: Running, path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(wire.expect(200, node.ports["monitor"], path))
    return found


def _leader(cluster: dict[str, Any] | None) -> str:
    return str((cluster or {}).get("leader") or "")
