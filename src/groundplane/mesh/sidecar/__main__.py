"""`python -m groundplane.mesh.sidecar`: see `--help`. Exit codes are those of `process`."""

from __future__ import annotations

import asyncio
import sys

from groundplane.core.collection import ease_collection
from groundplane.core.errors import InvalidArgument
from groundplane.mesh.sidecar.config import SidecarConfig, load
from groundplane.mesh.sidecar.process import EXIT_USAGE, Sidecar
from groundplane.telemetry.logs import configure, get_logger


def main() -> int:
    """Run a sidecar until SIGTERM."""
    try:
        config = load()
        configure(config.log_level)
    except InvalidArgument as error:
        get_logger("sidecar").error("usage", error=str(error))
        return EXIT_USAGE
    ease_collection()
    return asyncio.run(_run(config))


async def _run(config: SidecarConfig) -> int:
    return await Sidecar(config).run()


if __name__ == "__main__":
    sys.exit(main())
