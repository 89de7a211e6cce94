"""An OAuth 2.1 authorization server: oidc-provider, on Node. Its URL is the issuer.

Clients get tokens by their credentials (`client_credentials`): a JWT where they name the resource that it is for (RFC
8707), an opaque one otherwise. The signing keys lie in the data folder. While it runs, `rotate` replaces them and
`set_clock` lets it date its tokens otherwise.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, urlencode, urlsplit

from groundplane.core.errors import InvalidArgument
from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import Place, Program, Server, Source
from groundplane.testing.servers.npm import Npm
from groundplane.testing.toolchains import toolchain

HERE = Path(__file__).with_name("oidc_provider")
ALGORITHMS = ("RS256", "ES256")
CLIENT = {"client_id": "client", "client_secret": "secret", "scope": "tools:*"}
_ANSWER_S = 10.0


class Oidc(Server):
    """See the module."""

    name = "oidc"
    title = "OAuth (oidc-provider)"
    ports = ("http",)
    stop_timeout_s = 5.0
    options: ClassVar[Mapping[str, str]] = {
        "clients": 'Clients, each `{"client_id": …, "client_secret": …, "scope": "words that it may ask for"}`; '
        "without it one: `client`, `secret`, `tools:*`.",
        "resources": "URIs that tokens may be for; any without it.",
        "lifetime_s": "How long a token counts, whole seconds; 300 without it.",
        "algorithm": "What tokens are signed with: `RS256`, as without it, or `ES256`.",
    }

    def sources(self) -> Sequence[Source]:
        return [Npm("oidc-provider", lock=HERE, size_mb=4, seconds=5)]

    def launch(self, place: Place) -> Sequence[Program]:
        path = place.folder / "settings.json"
        path.write_text(json.dumps(_settings(self.url(place), place)), encoding="utf-8")
        return [Program(argv=[str(toolchain("node").path), str(HERE / "server.mjs"), str(path)])]

    def check(self, place: Place) -> None:
        wire.expect(200, place.port, "/.well-known/openid-configuration")

    def url(self, place: Place) -> str:
        return f"http://127.0.0.1:{place.port}"


def token(
    url: str,
    client_id: str = CLIENT["client_id"],
    client_secret: str = CLIENT["client_secret"],
    *,
    resource: str = "",
    scope: str = "",
) -> str:
    """An access token of the server at this URL. Raises `invalid_argument` with its words where it refuses."""
    form = {"grant_type": "client_credentials", "resource": resource, "scope": scope}
    pair = f"{quote(client_id, safe='')}:{quote(client_secret, safe='')}"
    headers = {
        "Authorization": "Basic " + b64encode(pair.encode()).decode(),
        "Content-Type": "application/x-www-form-urlencoded",
    }
    body = urlencode({name: value for name, value in form.items() if value}).encode()
    return str(_ask(url, "POST", "/token", body, headers)["access_token"])


def rotate(url: str, *, keep: bool = False) -> str:
    """Sign with a new key from now on; the id of it. `keep`: those before stay published, otherwise they are gone."""
    return str(_ask(url, "POST", "/kit/keys", json.dumps({"keep": keep}).encode())["kid"])


def set_clock(url: str, ahead_s: float = 0.0) -> None:
    """Date tokens by a clock that is so many seconds ahead of the true one (negative: behind)."""
    _ask(url, "PUT", "/kit/clock", json.dumps({"ahead_s": ahead_s}).encode())


def _ask(url: str, method: str, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    address = urlsplit(url)
    if address.hostname is None or address.port is None:
        raise InvalidArgument(f"url: {url!r} is not http://HOST:PORT")
    status, answer = wire.http(
        method, address.port, path, host=address.hostname, body=body, headers=headers, timeout_s=_ANSWER_S
    )
    if status != 200:
        raise InvalidArgument(f"{method} {path}: {status} {answer[:300].decode(errors='replace')}")
    found: dict[str, Any] = json.loads(answer)
    return found


def _settings(issuer: str, place: Place) -> dict[str, Any]:
    """What `server.mjs` reads. `invalid_argument` names the option."""
    clients = place.options.get("clients", [CLIENT])
    for one in clients:
        if not isinstance(one, Mapping) or one.keys() != CLIENT.keys():
            raise InvalidArgument(f"clients: {one!r} is not a mapping with exactly {', '.join(CLIENT)}")
    lifetime_s, algorithm = place.options.get("lifetime_s", 300), place.options.get("algorithm", ALGORITHMS[0])
    if not isinstance(lifetime_s, int) or lifetime_s < 1:
        raise InvalidArgument(f"lifetime_s: {lifetime_s!r} is not a whole number of seconds from 1 on")
    if algorithm not in ALGORITHMS:
        raise InvalidArgument(f"algorithm: {algorithm!r} is none of {', '.join(ALGORITHMS)}")
    return {
        "issuer": issuer,
        "port": place.port,
        "modules": place.program("modules"),
        "keys": str(place.data / "keys.json"),
        "clients": list(clients),
        "scopes": sorted({word for one in clients for word in str(one["scope"]).split()}),
        "resources": place.options.get("resources"),
        "lifetime_s": lifetime_s,
        "algorithm": algorithm,
    }


SERVER = Oidc()
