"""What a fault test did, for the table of `make soak`: one JSON line for each test, where a file was asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

LOG = "GROUNDPLANE_TEST_SOAK_LOG"


def record(**facts: Any) -> None:
    """Append the facts to the file that `GROUNDPLANE_TEST_SOAK_LOG` names."""
    path = os.environ.get(LOG)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts, sort_keys=True) + "\n")
