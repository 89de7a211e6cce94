"""The public keys of an issuer: found by its metadata, fetched when they are needed, and again when they rotate.

The keys are kept for `FRESH_S`, and used on for `STALE_S` while the issuer is away. A key id that is not known makes
them be fetched again, once in `AGAIN_S`, so that tokens with invented ids cannot make the gateway ask the issuer at
will.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import jwt

from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import Unavailable
from groundplane.telemetry.logs import get_logger

FRESH_S = 300.0
STALE_S = 86_400.0
AGAIN_S = 10.0
TIMEOUT_S = 5.0
DOCUMENT_BYTES_MAX = 512 * 1024
KEYS_MAX = 100
_log = get_logger("security")


class KeySet:
    """Keys by id. `jwks_url` None: what the metadata of `issuer` names (RFC 8414, OpenID Connect Discovery)."""

    def __init__(
        self, issuer: str, jwks_url: str | None = None, *, clock: Clock = SYSTEM_CLOCK, again_s: float = AGAIN_S
    ) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._clock = clock
        self._again_s = again_s
        self._keys: list[jwt.PyJWK] = []
        self._fetched_at: float | None = None
        self._asked_at: float | None = None
        self._turn = asyncio.Lock()
        self._client: httpx2.AsyncClient | None = None
        self.fetches = 0

    async def find(self, key_id: Any, algorithm: str) -> jwt.PyJWK | None:
        """The key with that id (without one: the only one that fits) for that algorithm; None where there is none.
        Raises `unavailable` where there are no keys and the issuer is away.
        """
        if self._age() > FRESH_S or self._pick(key_id, algorithm) is None:
            await self._refresh(key_id, algorithm)
        return self._pick(key_id, algorithm)

    async def aclose(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.aclose()

    def _pick(self, key_id: Any, algorithm: str) -> jwt.PyJWK | None:
        fitting = [key for key in self._keys if key.algorithm_name == algorithm]
        if key_id is None:
            return fitting[0] if len(fitting) == 1 else None
        return next((key for key in fitting if key.key_id == key_id), None)

    async def _refresh(self, key_id: Any, algorithm: str) -> None:
        async with self._turn:
            if self._age() <= FRESH_S and self._pick(key_id, algorithm) is not None:
                return  # another fetched them meanwhile
            now = self._clock.monotonic()
            if self._asked_at is not None and now - self._asked_at < self._again_s:
                if self._age() > STALE_S:
                    raise _away(self._issuer)
                return
            self._asked_at = now
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    self._keys = await self._fetch()
                self._fetched_at = now
            except (httpx2.HTTPError, TimeoutError, ValueError) as error:
                _log.error("jwks_not_fetched", issuer=self._issuer, error=f"{type(error).__name__}: {error}")
                if self._age() > STALE_S:
                    raise _away(self._issuer) from error

    def _age(self) -> float:
        return float("inf") if self._fetched_at is None else self._clock.monotonic() - self._fetched_at

    async def _fetch(self) -> list[jwt.PyJWK]:
        self.fetches += 1
        url = self._jwks_url or await self._discover()
        found = await self._document(url)
        listed = found.get("keys")
        if not isinstance(listed, list):
            raise ValueError(f"{url} has no list of keys")
        return [key for one in listed[:KEYS_MAX] if (key := _key(one)) is not None]

    async def _discover(self) -> str:
        """The URL of the keys, from the first metadata that names it and this very issuer."""
        for url in metadata_urls(self._issuer):
            try:
                found = await self._document(url)
            except httpx2.HTTPStatusError:
                continue
            if found.get("issuer") != self._issuer:
                raise ValueError(f"{url} is about {str(found.get('issuer'))[:200]!r}, not about {self._issuer!r}")
            jwks_url = found.get("jwks_uri")
            scheme = httpx2.URL(self._issuer).scheme  # what is fetched is as safe as the issuer itself
            if isinstance(jwks_url, str) and jwks_url.startswith((f"{scheme}://", "https://")):
                return jwks_url
        raise ValueError(f"{self._issuer} has no metadata that names its keys")

    async def _document(self, url: str) -> dict[str, Any]:
        if self._client is None:
            self._client = httpx2.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False)
        async with self._client.stream("GET", url, headers={"Accept": "application/json"}) as response:
            response.raise_for_status()
            data = bytearray()
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > DOCUMENT_BYTES_MAX:
                    raise ValueError(f"{url} is larger than {DOCUMENT_BYTES_MAX} bytes")
            found = httpx2.Response(200, content=bytes(data)).json()
        if not isinstance(found, dict):
            raise ValueError(f"{url} is no JSON object")
        return found


def metadata_urls(issuer: str) -> list[str]:
    """Where an issuer's metadata may be: RFC 8414 puts the well-known part before its path, OpenID Connect after it."""
    base = httpx2.URL(issuer)
    path = base.path.rstrip("/")
    before = [f"/.well-known/{name}{path}" for name in ("oauth-authorization-server", "openid-configuration")]
    after = [f"{path}/.well-known/openid-configuration"] if path else []
    return [str(base.copy_with(path=one)) for one in [*before, *after]]


def _key(document: Any) -> jwt.PyJWK | None:
    """A key for signatures; None for one of another use or kind, which is left out."""
    if not isinstance(document, dict) or document.get("use", "sig") != "sig" or document.get("kty") == "oct":
        return None
    try:
        return jwt.PyJWK(document)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None


def _away(issuer: str) -> Unavailable:
    return Unavailable(f"issuer: the keys of {issuer!r} cannot be fetched; look at it and at the network")
