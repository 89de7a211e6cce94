"""The embedded driver: messages among the processes of one state folder, what is durable in the plane's SQLite file.

Address: `embedded://` (the state folder of the settings) or `embedded:///absolute/state/folder`.

Delivery: transient messages go from memory to memory within a process, over unix sockets between processes, at most
once. What is appended is durable when `append` returns (fdatasync), and handed out at least once. A consumer whose
process ends in any way is noticed within a second by its file lock, one that is stopped or hangs when its lease ends.

Limits: one machine; messages up to 1 MiB; a million of events and a million of commands; events are kept for 7 days,
results for a day.

Cannot: reach other machines; run on a network file system.

Escape hatch: `driver.native` is the `groundplane.backends.sqlite.Database`.
"""

from groundplane.bus.drivers.embedded.driver import EmbeddedBus

__all__ = ["EmbeddedBus"]
