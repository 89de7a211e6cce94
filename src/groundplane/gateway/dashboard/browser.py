"""What a browser is told and asked: headers of every page, cookies, the proof that a change came from a page of ours.

A change is taken when three things hold: the browser says that a page of this very origin sent it (`Sec-Fetch-Site`,
`Origin`), its form carries the token, and the token belongs to the cookie of this visit. A page of another site has
none of them; one of another port of this machine, whose cookies browsers share with us, lacks the first and the key
that tokens are made with.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Mapping
from hashlib import sha256
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request

from groundplane.gateway.problems import HTTPProblem

VISIT_COOKIE = "groundplane_visit"
THEME_COOKIE = "groundplane_theme"
TOKEN_FIELD = "_token"
FORM_TYPE = "application/x-www-form-urlencoded"
FIELDS_MAX = 1000
_VISIT = re.compile(r"[A-Za-z0-9_-]{22,64}")

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'self'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send `Origin: null` from our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


def visit_of(request: Request) -> str:
    """The id of this browser's visit, or empty where it has none yet."""
    found = request.cookies.get(VISIT_COOKIE, "")
    return found if _VISIT.fullmatch(found) else ""


def new_visit() -> str:
    """An id that nobody guesses."""
    return secrets.token_urlsafe(24)


def token_of(key: bytes, visit: str) -> str:
    """What the forms of a visit carry. Nobody makes one without the key."""
    return hmac.new(key, visit.encode(), sha256).hexdigest()


def is_secure(request: Request) -> bool:
    """Whether the browser speaks https, here or to the proxy before us."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", "").lower())


def local_path(path: str) -> str:
    """The path when it leads to a page of ours, else the first page: nobody is sent away from here."""
    plain = path.isascii() and path.isprintable() and "\\" not in path
    return path if plain and path.startswith("/") and not path.startswith("//") else "/"


def check_origin(request: Request) -> None:
    """403 unless the browser says that a page of this origin sent it. What says nothing at all is no browser of today,
    and has the REST API.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    own = request.headers.get("host", "").lower()
    if site is not None and site != "same-origin":
        raise _refused(f"sec-fetch-site: {site[:50]!r}; a change comes from a page of this dashboard alone")
    if origin is not None and urlsplit(origin).netloc.lower() != own:
        raise _refused(f"origin: {origin[:200]!r} is not {own[:200]!r}; a change comes from a page of this dashboard")
    if site is None and origin is None:
        raise _refused("origin: is missing; change things with a browser, or by the REST API (/openapi.json)")


def check_token(key: bytes, visit: str, form: Mapping[str, str]) -> None:
    """403 unless the form's token belongs to this visit."""
    given = form.get(TOKEN_FIELD, "")
    if not hmac.compare_digest(token_of(key, visit).encode(), given.encode("utf-8", "replace")):
        raise _refused(f"{TOKEN_FIELD}: does not belong to this visit; open the page again and repeat the change")


async def read_form(request: Request) -> dict[str, list[str]]:
    """The fields of a plain form, each with its values."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM_TYPE:
        raise HTTPProblem(415, f"content-type: {kind[:100]!r}; send {FORM_TYPE}", headers={"Accept": FORM_TYPE})
    try:
        text = (await request.body()).decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX)
    except ValueError as error:
        raise HTTPProblem(400, f"body: is no form of at most {FIELDS_MAX} fields in UTF-8") from error
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def _refused(message: str) -> HTTPProblem:
    return HTTPProblem(403, message, reason="cross_site")
