"""What a test may not leave behind: the kit's, by the name under which the suites use it."""

from groundplane.testing.leaks import (
    GRACE_S,
    Snapshot,
    children,
    command_line,
    descriptors,
    eventually,
    leaked_tasks,
    mark_run,
    processes_of_run,
    threads,
)

__all__ = [
    "GRACE_S",
    "Snapshot",
    "children",
    "command_line",
    "descriptors",
    "eventually",
    "leaked_tasks",
    "mark_run",
    "processes_of_run",
    "threads",
]
