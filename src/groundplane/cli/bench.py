"""`groundplane bench`: the benchmarks of the sources, beside the raw client and a peer."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from groundplane.cli.output import Output
from groundplane.cli.repository import find


def bench(
    *names: Annotated[str, Parameter(help="Only these benchmarks (default: all).")],
    json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False,
) -> int:
    """Run the benchmarks and print their table.

    Examples:

      groundplane bench

      groundplane bench gateway --json
    """
    root = find("benchmarks/__main__.py", "bench").parents[1]
    program = [sys.executable, "-m", "benchmarks", *names]
    if not json:
        return subprocess.run(program, cwd=root, check=False).returncode
    with tempfile.TemporaryDirectory(prefix="groundplane-bench-") as folder:
        code = subprocess.run([*program, "--out", folder], cwd=root, stdout=sys.stderr, check=False).returncode
        for file in Path(folder).glob("latest.json"):
            Output(json=True).result(msgspec.json.decode(file.read_bytes()))
    return code
