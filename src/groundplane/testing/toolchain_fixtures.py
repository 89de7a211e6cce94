"""Tool chains as pytest knows them: fixtures `node_toolchain`, `go_toolchain`, `maven_toolchain`,
`chromium_toolchain`, and markers.

Marked `@pytest.mark.node`, `go`, `maven` or `chromium`, a test runs only where the tool chain is; a fixture tells
where. What is missing skips, or fails where GROUNDPLANE_REQUIRE_SERVERS names it. Part of `groundplane.testing.plugin`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from groundplane.testing.toolchains import Toolchain

_MARKERS = {
    "node": "needs Node and npm on PATH",
    "go": "needs the Go tool chain on PATH",
    "maven": "needs a JDK and Maven on PATH",
    "chromium": "needs Chromium on PATH",
}


def pytest_configure(config: pytest.Config) -> None:
    for name, words in _MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {words}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in _MARKERS:
        if item.get_closest_marker(name) is not None:
            required(name)


def required(name: str) -> Toolchain:
    """The tool chain, or the end of the test: skipped, or failed where it is required."""
    from groundplane.testing.servers.contract import ServerMissing
    from groundplane.testing.servers.settings import KitSettings
    from groundplane.testing.toolchains import toolchain

    try:
        return toolchain(name)
    except ServerMissing as error:
        if KitSettings.load().requires(name):
            pytest.fail(f"{error.message} (GROUNDPLANE_REQUIRE_SERVERS names it)", pytrace=False)
        pytest.skip(error.message)


@pytest.fixture(scope="session")
def node_toolchain() -> Toolchain:
    """Node and npm."""
    return required("node")


@pytest.fixture(scope="session")
def go_toolchain() -> Toolchain:
    """Go."""
    return required("go")


@pytest.fixture(scope="session")
def maven_toolchain() -> Toolchain:
    """A JDK and Maven."""
    return required("maven")


@pytest.fixture(scope="session")
def chromium_toolchain() -> Toolchain:
    """Chromium."""
    return required("chromium")
