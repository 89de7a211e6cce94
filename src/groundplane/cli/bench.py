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
from groundplane.core.errors import NotFound


def bench(
    *names: Annotated[str, Parameter(help="Only these benchmarks (default: all).")],
    baseline: Annotated[Path | None, Parameter(help="latest.json of an earlier run: exit 1 past the loss.")] = None,
    loss: Annotated[str, Parameter(help="How much of a ratio to a peer may be lost: 0.2, or 20%.")] = "20%",
    scale: Annotated[float | None, Parameter(help="Share of the full amount of work, as 0.1.")] = None,
    json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False,
) -> int:
    """Run the benchmarks and print their table. With a baseline, ratios to the peers of the same run are compared with
    those of then: values themselves tell of the machine.

    Examples:

      groundplane bench

      groundplane bench gateway --json

      groundplane bench --baseline benchmarks/results/latest.json --loss 10%
    """
    root = find("benchmarks/__main__.py", "bench").parents[1]
    if baseline is not None and not baseline.is_file():
        raise NotFound(f"baseline: {str(baseline)!r} does not exist; give the latest.json of an earlier run")
    program = [sys.executable, "-m", "benchmarks", *names, *(["--scale", str(scale)] if scale is not None else [])]
    if baseline is not None:
        program += ["--baseline", str(baseline.absolute()), "--loss", loss]
    if not json:
        return subprocess.run(program, cwd=root, check=False).returncode
    with tempfile.TemporaryDirectory(prefix="groundplane-bench-") as folder:
        code = subprocess.run([*program, "--out", folder], cwd=root, stdout=sys.stderr, check=False).returncode
        for file in Path(folder).glob("latest.json"):
            Output(json=True).result(msgspec.json.decode(file.read_bytes()))
    return code
