"""Who sends a request: found once for each, before anything is routed, and kept in `scope["state"]`.

`caller` is the `Caller`, or None for a stranger; `refusal` is then the error that says why; `access` decides. Where
nobody is authenticated (which the settings allow on the loopback alone) everyone is the local caller. Keys and tokens
come in the header `Authorization: Bearer …`, never in a URL, and appear in no log and no answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from groundplane.core.errors import GroundplaneError
from groundplane.gateway.access import Access, unauthenticated
from groundplane.gateway.settings import GatewaySettings
from groundplane.security.access import GRANTED_BY, LOCAL, Caller
from groundplane.security.store import Security

if TYPE_CHECKING:
    from groundplane.gateway.tokens import TokenVerifier

TOKEN_CHARS_MAX = 8192
METADATA_PATH = "/.well-known/oauth-protected-resource"
MCP_PATH = "/mcp"

Headers = Iterable[tuple[bytes, bytes]]
LoggedIn = Callable[[str, Headers], Awaitable[Caller | None]]


class Authenticator:
    """Finds callers. `security` verifies API keys, `tokens` the tokens of an issuer; None: they are not taken."""

    def __init__(
        self, settings: GatewaySettings, security: Security | None = None, tokens: TokenVerifier | None = None
    ) -> None:
        self._settings = settings
        self._keys = security if settings.takes_keys else None
        self._tokens = tokens
        self._scopes = settings.scopes_of_tokens()

    async def caller(self, headers: Headers) -> Caller:
        """Who sent these headers. Raises `permission_denied` (`unauthenticated`), and `unavailable` where what knows
        the answer is away.
        """
        if self._settings.auth == "none":
            return LOCAL
        given = [value for name, value in headers if name == b"authorization"]
        if not given:
            raise unauthenticated()
        scheme, _, credential = given[0].decode("latin-1").partition(" ")
        text = credential.strip()
        if len(given) > 1 or scheme.lower() != "bearer" or not text:
            raise unauthenticated("is not one bearer credential")
        found = await self._holder(text) if len(text) <= TOKEN_CHARS_MAX else None
        if found is None:
            raise unauthenticated("is not valid, or not any more")
        return found

    async def _holder(self, text: str) -> Caller | None:
        if text.startswith("gp_"):
            return await self._keys.verify(text) if self._keys is not None else None
        return await self._tokens.verify(text) if self._tokens is not None else None

    def challenge(self, path: str, error: GroundplaneError, *, presented: bool) -> str:
        """`WWW-Authenticate` (RFC 6750, RFC 9728) for a refusal at `path`."""
        scope = str(error.details.get("scope") or "")
        parts = ['realm="groundplane"']
        if self._tokens is not None:
            parts.append(f'resource_metadata="{self._metadata_url(path)}"')
        if error.reason == "insufficient_scope":
            parts.append('error="insufficient_scope"')
        elif presented:
            parts.append('error="invalid_token"')
        if scope or self._tokens is not None:
            parts.append(f'scope="{self.scope_names(scope or "tools:*")}"')
        return "Bearer " + ", ".join(parts)

    def scope_names(self, scope: str) -> str:
        """What a token's scope has to say for `scope`: the issuer's word where one stands for it."""
        enough = {scope, "tools:*"} if scope.startswith("tools:") else GRANTED_BY.get(scope, {scope})
        return next((name for name, granted in self._scopes.items() if not enough.isdisjoint(granted)), scope)

    def metadata(self, path: str, name: str) -> dict[str, object] | None:
        """The metadata of the protected resource at `path` (RFC 9728); None where tokens are not taken."""
        if self._tokens is None or self._settings.issuer is None:
            return None
        return {
            "resource": (self._settings.public_url or "").rstrip("/") + path,
            "resource_name": name,
            "authorization_servers": [self._settings.issuer],
            "bearer_methods_supported": ["header"],
            "scopes_supported": sorted(self._scopes) or [*GRANTED_BY, "tools:*"],
        }

    def _metadata_url(self, path: str) -> str:
        base = (self._settings.public_url or "").rstrip("/")
        return f"{base}{METADATA_PATH}{MCP_PATH if path == MCP_PATH else ''}"


def token_verifier(settings: GatewaySettings) -> TokenVerifier | None:
    """What verifies tokens, where the settings take them. It must be closed."""
    if not settings.takes_tokens or settings.issuer is None:
        return None
    from groundplane.gateway.jwks import KeySet
    from groundplane.gateway.tokens import TokenRules, TokenVerifier

    rules = TokenRules(issuer=settings.issuer, audiences=settings.audiences, scopes=settings.scopes_of_tokens())
    return TokenVerifier(rules, KeySet(settings.issuer, settings.jwks_url))


class Authentication:
    """ASGI middleware that puts caller and access into the request's state. `logged_in` finds the caller of a page of
    the dashboard, which has no other credential.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator, access: Access, logged_in: LoggedIn) -> None:
        self._app = app
        self._logged_in = logged_in
        self._authenticator = authenticator
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            state = scope.setdefault("state", {})
            state["access"] = self._access
            state["caller"] = state["refusal"] = None
            try:
                state["caller"] = await self._authenticator.caller(scope["headers"])
            except GroundplaneError as error:  # routes that are open to strangers answer all the same
                state["refusal"] = error
                state["caller"] = await self._found(scope)
        await self._app(scope, receive, send)

    async def _found(self, scope: Scope) -> Caller | None:
        try:
            return await self._logged_in(scope["path"], scope["headers"])
        except GroundplaneError as error:
            scope["state"]["refusal"] = error
            return None
