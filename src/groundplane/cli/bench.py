"""`groundplane bench`: the benchmarks of the sources, beside the raw client and a peer."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

from cyclopts import Parameter

from groundplane.cli.repository import find


def bench(
    *names: Annotated[str, Parameter(help="Only these benchmarks (default: all).")],
    json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False,
) -> int:
    """Run the benchmarks and print their table.

    Examples:

      groundplane bench

      groundplane bench hops --json
    """
    root = find("benchmarks/__main__.py", "bench").parents[1]
    arguments = [*names, *(["--json"] if json else [])]
    return subprocess.run([sys.executable, "-m", "benchmarks", *arguments], cwd=root, check=False).returncode
