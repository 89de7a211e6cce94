"""Logins: an API key exchanged for a session that a cookie names. The cookie opens pages of the dashboard alone.

No other route looks at cookies, so a page of another site gains nothing by making a browser send them there. A session
lives for twelve hours, on every replica, and ends at once with its key.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie

import msgspec

from groundplane.gateway.dashboard.mount import ROOT
from groundplane.security.access import Caller
from groundplane.security.store import Security

COOKIE = "groundplane_login"
TTL_S = 12 * 3600.0
_ID_CHARS_MAX = 64


class _Login(msgspec.Struct, frozen=True):
    key_id: str


class Logins:
    """The logins of one namespace. `security` None: nobody logs in, as no keys are taken."""

    def __init__(self, security: Security | None) -> None:
        self._security = security

    @property
    def offered(self) -> bool:
        """Whether one can log in here."""
        return self._security is not None

    async def open(self, key: str) -> tuple[str, Caller] | None:
        """The cookie's value and the caller for an API key; None where the key opens nothing."""
        if self._security is None:
            return None
        caller = await self._security.verify(key)
        if caller is None:
            return None
        login = secrets.token_urlsafe(32)
        data = msgspec.json.encode(_Login(caller.key_id))
        await self._security.sessions.put(_session(login), caller.principal, data, ttl_s=TTL_S)
        return login, caller

    async def caller(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Caller | None:
        """Who is logged in, for a page of the dashboard; None for a stranger, and on every other path."""
        login = login_of(headers) if self._security is not None and is_page(path) else ""
        if self._security is None or not login:
            return None
        session = await self._security.sessions.get(_session(login))
        if session is None:
            return None
        return await self._security.caller_of(msgspec.json.decode(session.data, type=_Login).key_id)

    async def close(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """End the login that the cookie names, if any."""
        login = login_of(headers)
        if self._security is not None and login:
            await self._security.sessions.drop(_session(login))


def is_page(path: str) -> bool:
    """Whether the dashboard answers this path."""
    return path == "/" or path.startswith(f"{ROOT}/")


def login_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The login that the cookies name, or empty."""
    for name, value in headers:
        if name == b"cookie":
            try:
                found = SimpleCookie(value.decode("latin-1")).get(COOKIE)
            except CookieError:
                continue
            if found is not None and 1 <= len(found.value) <= _ID_CHARS_MAX:
                return found.value
    return ""


def _session(login: str) -> str:
    return f"login/{login}"
