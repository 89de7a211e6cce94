"""The ready file: JSON that is there exactly while a process is ready, and appears whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec


@contextmanager
def write_ready(path: str | None, facts: dict[str, Any]) -> Iterator[None]:
    """Write `facts` and the pid to `path` while the context is open. Without a path nothing is written."""
    if path is None:
        yield
        return
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(msgspec.json.encode({"pid": os.getpid(), **facts}) + b"\n")
    os.replace(temporary, path)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
