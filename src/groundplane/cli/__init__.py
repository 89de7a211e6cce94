"""The command line `groundplane`. Starting it loads only what the command needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code. The two halves of an actor start without the command line's weight."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    if command == "runtime":
        from groundplane.mesh.runtime import main as runtime

        return runtime(arguments[1:])
    if command == "sidecar":
        from groundplane.mesh.sidecar.__main__ import main as sidecar

        sys.argv = ["groundplane sidecar", *arguments[1:]]
        return sidecar()
    if command == "--version":
        from groundplane.cli.version import show

        return show(json="--json" in arguments)
    from groundplane.cli.program import run

    return run(arguments or ["--help"])
