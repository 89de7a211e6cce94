"""Key-value storage on NATS: one JetStream stream per bucket.

Address: `nats://[user:password@|token@]host:port[,host:port]`, `tls://…`, with the parameters of
`groundplane.backends.nats.Address`, and `replicas=3` for a cluster.
Guarantee: a write that returned is stored (with replicas: by a quorum). Conditions, several keys at once and fences are
checked by the server in the step in which it writes. Watches are built anew after every interruption and compared.
Limits: nats-server 2.12 or newer. Values up to 1 MiB, less where `max_payload` is less. A TTL is whole seconds; a value
goes up to a quarter of a second after its time, never before. In a cluster keys are read from the stream's leader;
listings and the beginning of a watch may come from a replica that is some milliseconds behind. A removal found after an
interruption has the last revision that was seen.
Layout, also for other clients: stream `KV_<bucket>` with the subjects `$KV.<bucket>.<key>`, as in NATS ADR-8; names
and keys are encoded as `names` tells. Terms of fences are under `$KVF.<bucket>.`.
Cannot: nothing of the port is left out.
Escape hatch: `native` is the `JetStream` of the bucket's connection.
"""

from __future__ import annotations

from groundplane.kv.drivers.nats.driver import NatsKV
from groundplane.kv.drivers.nats.opening import open_driver

__all__ = ["NatsKV", "open_driver"]
