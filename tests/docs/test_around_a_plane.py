"""The tests of the how-to about proxies, telemetry and manifests run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from groundplane.testing.compose import schema_path
from groundplane.testing.kubernetes import keda_crds
from groundplane.testing.servers.contract import ServerMissing
from integration.server_lab import bring

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "around-a-plane.md"


@pytest.mark.req("KIT-01", "KIT-03")
@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize(
    ("servers", "fetch", "chosen", "passed"),
    [
        (("otlp", "nginx"), None, "span or proxy", 2),
        ((), schema_path, "compose", 1),
        (("kubernetes",), keda_crds, "cluster", 1),
    ],
    ids=["telemetry", "compose", "manifests"],
)
def test_the_tests_of_the_page_pass(
    servers: tuple[str, ...], fetch: Callable[[], Path] | None, chosen: str, passed: int, tmp_path: Path
) -> None:
    for name in servers:
        bring(name)
    try:
        if fetch is not None:
            fetch()
    except ServerMissing as error:
        pytest.skip(error.message)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "test_page.py").write_text(code)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GROUNDPLANE_REQ", "PYTEST_"))}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", chosen], cwd=tmp_path, env=kept, capture_output=True,
        text=True, timeout=150, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(rf"^{passed} passed", ran.stdout, re.M), ran.stdout
