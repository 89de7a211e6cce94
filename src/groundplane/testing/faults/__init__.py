"""Faults as an API: a TCP proxy that delays, throttles, cuts and swallows, and a disk that can be full.

    with Proxy.to("127.0.0.1", 5672) as proxy:      # or `async with`
        url = proxy.through("amqp://guest:guest@127.0.0.1:5672/")
        proxy.latency(0.1, jitter_s=0.05)
        proxy.half_open("to_client")
        proxy.restore()

    with small_disk(tmp_path / "disk", size_bytes=16 * 2**20) as disk:
        disk.fill()

Servers are killed, paused and restarted through their own handles (`groundplane.testing.servers`).
"""

from groundplane.testing.faults.disk import NoSmallDisk, SmallDisk, small_disk
from groundplane.testing.faults.pipe import Direction
from groundplane.testing.faults.proxy import Proxy
from groundplane.testing.faults.relay import Relay, Traffic

__all__ = ["Direction", "NoSmallDisk", "Proxy", "Relay", "SmallDisk", "Traffic", "small_disk"]
