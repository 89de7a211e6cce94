"""A pytest plugin that writes which tests are marked with which requirement ids, as JSON, after collection."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    proofs: defaultdict[str, set[str]] = defaultdict(set)
    for item in session.items:
        test = item.nodeid.split("[", 1)[0]
        for mark in item.iter_markers("req"):
            for name in mark.args:
                proofs[str(name)].add(test)
    listed = {name: sorted(tests) for name, tests in sorted(proofs.items())}
    Path(os.environ["GROUNDPLANE_PROOFS_FILE"]).write_text(json.dumps(listed), encoding="utf-8")
