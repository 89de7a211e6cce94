"""Manifests are compared byte for byte with the files in `tests/golden/deploy`.

To write them anew:  GROUNDPLANE_TEST_WRITE_GOLDEN=1 pytest tests/unit/deploy/test_golden.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deployed import GOLDEN, SERVING, plan
from groundplane.deploy import compose, kubernetes

RENDERED: dict[str, Callable[[], dict[str, str]]] = {
    "compose": lambda: compose.render(plan()),
    "kubernetes": lambda: kubernetes.render(kubernetes.place_of(plan(), namespace="acme-prod")),
    "services": lambda: {
        name: text
        for name, text in [
            *kubernetes.render(kubernetes.place_of(plan(SERVING, serves=True))).items(),
            *compose.render(plan(SERVING, serves=True, actors=[], routes={})).items(),
        ]
        if name in ("45-services.yaml", "compose.yaml")
    },
    "kubernetes-plain": lambda: kubernetes.render(
        kubernetes.place_of(plan(gateway_replicas=1, routes={}, replicas_min=2), keda=False)
    ),
}


@pytest.mark.req("CORE-08.2")
@pytest.mark.parametrize("kind", list(RENDERED))
def test_what_is_rendered_is_what_was_looked_at(kind: str) -> None:
    files, folder = RENDERED[kind](), GOLDEN / kind
    if os.environ.get("GROUNDPLANE_TEST_WRITE_GOLDEN"):
        _write(folder, files)
    assert sorted(files) == sorted(one.name for one in folder.iterdir())
    for name, text in files.items():
        assert text == (folder / name).read_text(encoding="utf-8"), f"{folder / name}: see the docstring of this file"


def _write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
