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
    "gateway_postgres": "gateway_postgres",
    "gateway_tasks": "gateway_tasks",
    "gateway_auth": "gateway_auth",
    "bus": "bus",
    "services": "services",
    "kv": "kv",
    "weight": "weight",
}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 1 when a bar is missed and `--strict` is given, or more than `--loss` is lost to `--baseline`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", help=f"which of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each measurement; the median counts")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the full amount of work, 0.1 for a quick look"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--publish", action="store_true", help="put the table into the README too")
    parser.add_argument("--docs", type=Path, help="a page of the documentation that gets the tables")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--baseline", type=Path, help="latest.json of an earlier run: exit 1 past the loss")
    parser.add_argument(
        "--loss", type=_share, default=0.2, help="how much of a ratio to a peer may be lost: 0.2, or 20%%"
    )
    options = parser.parse_args(arguments)
    try:
        baseline = report.read(options.baseline) if options.baseline else None
    except ValueError as error:
        parser.error(str(error))
    if unknown := [name for name in options.sections if name not in SECTIONS]:
        parser.error(f"sections: {unknown[0]!r} is none of {', '.join(SECTIONS)}")
    rows: list[report.Row] = []
    for name in options.sections or SECTIONS:
        print(f"{name} …", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"benchmarks.{SECTIONS[name]}").rows(options.rounds, options.scale)
    report.write(rows, options.out)
    print((options.out / "latest.md").read_text())
    if options.docs:
        options.docs.write_text(report.page(rows, options.sections, options.rounds, options.docs))
    if options.publish:
        report.publish(rows, Path(__file__).parents[1] / "README.md")
    lost = _lost(rows, baseline, options.loss) if baseline is not None else False
    return 1 if lost or (options.strict and any(row.meets is False for row in rows)) else 0


def _lost(rows: list[report.Row], baseline: list[report.Row], loss: float) -> bool:
    found, compared = report.losses(rows, baseline, loss)
    for one in found:
        print(f"lost: {one}", file=sys.stderr)
    if not compared:
        print("baseline: nothing of it was measured in this run", file=sys.stderr)
    else:
        print(f"baseline: {compared} ratios compared, {len(found)} lost more than {loss:.0%}", file=sys.stderr)
    return bool(found) or not compared


def _share(text: str) -> float:
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to below 1 (or below 100%)")
    return value


if __name__ == "__main__":
    sys.exit(main())
