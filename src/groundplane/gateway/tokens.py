"""Tokens of an OAuth 2.1 issuer: JWTs that are verified by the issuer's keys (RFC 9068, RFC 7519, RFC 7517).

Checked are signature (of an allowed algorithm, never `none` or a shared secret), issuer, audience, expiry and
not-before with a leeway, and that there is a subject or client. What was verified is known until it expires, for five
minutes at most (so a key that the issuer withdraws stops counting), in bounded space.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jwt
import msgspec

from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.gateway.jwks import KeySet
from groundplane.security.access import PRINCIPAL_MAX, Caller, is_scope
from groundplane.security.keys import digest_of
from groundplane.telemetry.logs import get_logger

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
LEEWAY_S = 30.0
KNOWN_MAX = 10_000
KNOWN_S = 300.0
REFUSED_S = 5.0
PRINCIPAL_PREFIX = "oauth:"
_log = get_logger("security")


class TokenRules(msgspec.Struct, frozen=True, kw_only=True):
    """What a token must say. `audiences`: one of them is enough. `scopes`: what scopes of the issuer stand for; those
    that are not in it count where they are scopes of ours.
    """

    issuer: str
    audiences: tuple[str, ...]
    scopes: Mapping[str, tuple[str, ...]] = {}


class TokenVerifier:
    """Verifies tokens. `aclose` ends what it holds."""

    def __init__(self, rules: TokenRules, keys: KeySet, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._rules = rules
        self._keys = keys
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()
        self._refused: OrderedDict[bytes, float] = OrderedDict()

    async def verify(self, text: str) -> Caller | None:
        """The holder of this token; None where it is not one of the issuer's for us, or not any more. Raises
        `unavailable` where the issuer's keys cannot be had.
        """
        if text.count(".") != 2:
            return None
        digest, now = digest_of(text), self._clock.now_ms() / 1000
        known = self._known.get(digest)
        if known is not None:
            if now < known[0]:
                return known[1]
            del self._known[digest]
        if self._refused.get(digest, 0.0) > now:
            return None
        try:
            claims = await self._claims(text)
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            _log.info("token_refused", why=type(error).__name__)
            _keep(self._refused, digest, now + REFUSED_S)
            return None
        caller = self._caller(claims)
        _keep(self._known, digest, (min(float(claims["exp"]) + LEEWAY_S, now + KNOWN_S), caller))
        return caller

    async def aclose(self) -> None:
        """Close the connection to the issuer."""
        await self._keys.aclose()

    async def _claims(self, text: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(text)
        algorithm = header.get("alg")
        if algorithm not in ALGORITHMS or "crit" in header:
            raise jwt.InvalidAlgorithmError("the algorithm is not allowed")
        key = await self._keys.find(header.get("kid"), algorithm)
        if key is None:
            raise jwt.InvalidKeyError("the issuer has no such key")
        claims: dict[str, Any] = jwt.decode(
            text,
            key,
            algorithms=[algorithm],
            issuer=self._rules.issuer,
            audience=self._rules.audiences,
            leeway=LEEWAY_S,
            options={"require": ["exp", "iss", "aud"], "strict_aud": False},
        )
        _ = self._principal(claims)
        return claims

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        return Caller(
            principal=self._principal(claims),
            name=str(claims.get("client_id") or claims.get("azp") or claims.get("sub"))[:PRINCIPAL_MAX],
            kind="token",
            scopes=self._scopes(claims),
        )

    def _principal(self, claims: Mapping[str, Any]) -> str:
        """The subject, or the client that speaks for itself; apart from the principals of keys."""
        subject = claims.get("sub") or claims.get("client_id") or claims.get("azp")
        if not isinstance(subject, str) or not subject.isprintable():
            raise jwt.InvalidTokenError("there is no subject")
        principal = PRINCIPAL_PREFIX + subject
        if len(principal) > PRINCIPAL_MAX:
            raise jwt.InvalidTokenError("the subject is too long")
        return principal

    def _scopes(self, claims: Mapping[str, Any]) -> tuple[str, ...]:
        given = claims.get("scope", claims.get("scp", ""))
        words = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
        found: set[str] = set()
        for word in words:
            if isinstance(word, str) and word in self._rules.scopes:
                found.update(self._rules.scopes[word])
            elif is_scope(word):
                found.add(word)
        return tuple(sorted(found))


def _keep(cache: OrderedDict[bytes, Any], digest: bytes, value: Any) -> None:
    """Keep it, and forget the oldest beyond the bound."""
    cache[digest] = value
    cache.move_to_end(digest)
    while len(cache) > KNOWN_MAX:
        cache.popitem(last=False)
