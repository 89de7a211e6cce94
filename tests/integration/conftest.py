"""A stack that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from groundplane.testing.plugin import run_of
from stacks import Stack, on_servers


@pytest.fixture(scope="module", params=["embedded", "servers"])
def module_stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Like `stack`, for planes that are started once: embedded, then in namespaces of the module's own on servers."""
    state = tmp_path_factory.mktemp(request.param) / "state"
    if request.param == "embedded":
        yield Stack("embedded", state)
        return
    with ExitStack() as namespaces:
        urls = {
            name: namespaces.enter_context(
                run_of(request.config).namespaces.of(request.getfixturevalue(f"{name}_server"), lambda: False)
            )
            for name in ("rabbitmq", "postgres", "s3")
        }
        yield on_servers(state, **urls)
