"""Key-value storage in the plane's SQLite file.

Address: `embedded://` (`<state>/plane.db`), or `embedded:///absolute/state/folder`.
Guarantee: a write that returned survives SIGKILL and a loss of power; all processes on the file see one order of
writes, and watches of all of them are rung by each.
Limits: one local file; values up to 1 MiB; a TTL is a multiple of 1 ms, by the machine's clock; removals are remembered
for an hour.
Cannot: nothing of the port is left out.
Escape hatch: `native` is the `Database`.
"""

from __future__ import annotations

from groundplane.kv.drivers.embedded.driver import EmbeddedKV, open_driver

__all__ = ["EmbeddedKV", "open_driver"]
