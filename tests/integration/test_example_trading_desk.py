"""`examples/trading_desk`, run as `make demo-bus` runs it: the leader is killed, and the books agree."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples" / "trading_desk" / "demo.py"
LIMIT_S = 110

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.fault,
    pytest.mark.req("BUS-13.1", "BUS-20.2", "LEAD-01.1", "LEAD-02"),
]


def _play(*arguments: str, **variables: str) -> str:
    """What the demo printed. Its processes end with it, whatever happens."""
    process = subprocess.Popen(
        [sys.executable, str(DEMO), *arguments],
        env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        printed, errors = process.communicate(timeout=LIMIT_S)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, printed[-3000:] + errors[-3000:]
    return printed


def _shows_everything(printed: str) -> None:
    assert re.search(r"quotes +quotes-\d+ ACTIVE, quotes-\d+ ACTIVE", printed)
    assert "not_found: symbol: 'ENRON' is not traded here" in printed
    assert re.search(r"kill -9 \d+: the leader, in term \d+", printed)
    assert re.search(r"the next leader filled its first order \d+\.\d\d s later; all are filled", printed)
    assert re.search(r"reports\.positions  0 % .* 100 %", printed)
    assert re.search(r"120 fills \(.*, .*\), 120 trades: nothing lost, nothing done twice", printed)


def test_the_desk_loses_nothing_and_does_nothing_twice_embedded() -> None:
    _shows_everything(_play("--on", "embedded"))


def test_the_same_desk_does_so_on_nats(nats_url: str) -> None:
    printed = _play("--on", "nats", NATS_URL=nats_url)
    _shows_everything(printed)
    assert "The same on NATS" in printed
