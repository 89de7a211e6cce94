"""Sources of instances by URL scheme, beside the registry over `kv`, which is no driver.

A third party's (entry points `groundplane.services`) is a callable `(url: str)` whose result is an asynchronous context
manager of an `InstanceSource`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import cast

from groundplane.core.drivers import load_driver
from groundplane.services.port import InstanceSource

SOURCES: dict[str, str] = {"kubernetes": "groundplane.services.drivers.kubernetes:open_source"}


def open_source(url: str) -> AbstractAsyncContextManager[InstanceSource]:
    """Open the source that the URL names: `async with open_source("kubernetes:///shop") as source`.

    `invalid_argument` for a URL that nobody understands; else errors as the source's own, when the block is entered.
    """
    opener = load_driver("services", url, SOURCES)
    return cast(AbstractAsyncContextManager[InstanceSource], opener(url))
