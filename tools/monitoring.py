"""Writes what a monitoring of one's own takes from this project into deploy/: the dashboard and the rules of alerts.

python tools/monitoring.py            write
python tools/monitoring.py --check    exit 1 where a file is not what it would write
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from groundplane.deploy.dashboard import dashboard
from groundplane.deploy.document import to_yaml
from groundplane.telemetry.default_rules import default_rules
from groundplane.telemetry.rules import rule_file

ROOT = Path(__file__).resolve().parent.parent


def files() -> dict[Path, str]:
    """Each file with its content."""
    rules = to_yaml([rule_file(default_rules())], note="# written by tools/monitoring.py; do not edit\n")
    return {
        ROOT / "deploy" / "dashboards" / "groundplane.json": json.dumps(dashboard(), indent=1) + "\n",
        ROOT / "deploy" / "alerts" / "groundplane.rules.yml": rules,
    }


def main(arguments: list[str]) -> int:
    """Write or check."""
    stale = [path for path, text in files().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale; run `python tools/monitoring.py`")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files()[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
