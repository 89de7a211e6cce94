"""The embedded driver: durable queues in the plane's one SQLite file, shared by any number of processes.

Address: `embedded://` (the state folder of the settings) or `embedded:///absolute/state/folder`.

Delivery: at least once; durable when `send` and `settle` return (fdatasync). `settle` sends and settles in one
transaction. A consumer whose process ends in any way is noticed within a second by its file lock, one that is stopped
or hangs after `heartbeat_s`; what it held returns with its attempt raised.

Limits: one machine; messages up to 1 MiB; about 10^12 messages for each queue in its life.

Cannot: reach other machines; run on a network file system.

Escape hatch: `driver.native` is the `groundplane.backends.sqlite.Database`.
"""

from groundplane.queues.drivers.embedded.driver import EmbeddedQueues

__all__ = ["EmbeddedQueues"]
