"""What the fault tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from groundplane.testing.faults import NoSmallDisk
from groundplane.testing.faults import small_disk as mounted

pytest.register_assert_rewrite("fault.orders", "fault.plane_lab")


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of 16 MiB, or of as many as the test says by indirect parametrization."""
    size_mib = getattr(request, "param", 16)
    try:
        with mounted(tmp_path / "small", size_bytes=size_mib * 2**20) as disk:
            yield disk.path
    except NoSmallDisk as error:
        pytest.skip(str(error))
