"""A stack that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stacks import Stack, own_namespaces


@pytest.fixture(scope="module", params=["embedded", "servers"])
def module_stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Like `stack`, for planes that are started once: embedded, then in namespaces of the module's own on servers."""
    state = tmp_path_factory.mktemp(request.param) / "state"
    if request.param == "embedded":
        yield Stack("embedded", state)
        return
    with own_namespaces(request, state) as stack:
        yield stack
