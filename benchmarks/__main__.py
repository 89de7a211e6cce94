"""`python -m benchmarks [SECTION…]`: runs the sections and writes `benchmarks/results/latest.md` and `latest.json`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks import report

SECTIONS = {
    "durable_hop": "durable_hop",
    "hop_rabbitmq": "hop_rabbitmq",
    "jobs_postgres": "jobs_postgres",
    "blobs": "blobs",
    "gateway": "gateway",
    "weight": "weight",
}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 1 when a bar is missed and `--strict` is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", help=f"which of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each measurement; the median counts")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the full amount of work, 0.1 for a quick look"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--publish", action="store_true", help="put the table into the README too")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.sections if name not in SECTIONS]:
        parser.error(f"sections: {unknown[0]!r} is none of {', '.join(SECTIONS)}")
    rows: list[report.Row] = []
    for name in options.sections or SECTIONS:
        print(f"{name} …", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"benchmarks.{SECTIONS[name]}").rows(options.rounds, options.scale)
    report.write(rows, options.out)
    print((options.out / "latest.md").read_text())
    if options.publish:
        report.publish(rows, Path(__file__).parents[1] / "README.md")
    return 1 if options.strict and any(row.meets is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
