"""Scripts, styles and pictures, served under the hash of their content: a browser keeps them for good."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.types import ASGIApp

from groundplane.gateway.dashboard.mount import ROOT
from groundplane.gateway.problems import HTTPProblem

if TYPE_CHECKING:
    from groundplane.gateway.dashboard.site import Visit

_FILES = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "icons.svg": "image/svg+xml",
    "mark.svg": "image/svg+xml",
    "vendor/htmx-4.0.1.min.js": "text/javascript; charset=utf-8",
    "vendor/hx-sse-4.0.1.min.js": "text/javascript; charset=utf-8",
    "vendor/uplot-1.6.32.min.js": "text/javascript; charset=utf-8",
    "vendor/uplot-1.6.32.min.css": "text/css; charset=utf-8",
}
_BY_NAME = {path.rpartition("/")[2]: path for path in _FILES}
_FOR_GOOD = "public, max-age=31536000, immutable"


@cache
def content(name: str) -> tuple[bytes, str]:
    """The bytes of a file and the hash that its address has."""
    data = resources.files(__package__).joinpath("static", *_BY_NAME[name].split("/")).read_bytes()
    return data, sha256(data).hexdigest()[:16]


def address(name: str) -> str:
    """Where the file is served."""
    return f"{ROOT}/static/{content(name)[1]}/{name}"


async def serve(visit: Visit) -> ASGIApp:
    """The file; 404 for another hash, so that no cache keeps an old file under a new name."""
    name = visit.path("name")
    if name not in _BY_NAME or content(name)[1] != visit.path("digest"):
        raise HTTPProblem(404, f"path: {visit.request.url.path[:200]!r} does not exist")
    headers: dict[str, Any] = {"Cache-Control": _FOR_GOOD, "Content-Type": _FILES[_BY_NAME[name]]}
    return Response(content(name)[0], 200, headers)
