"""An issuer of tokens in this process, which signs whatever a test wants; what a real one gives is in
`test_gateway_oauth_server.py`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa


class Issuer:
    """Serves metadata and keys, signs tokens for `audience`; `rotate` replaces its key."""

    def __init__(self, audience: str) -> None:
        self.audience = audience
        self.fetches = 0
        self.away = False
        self.rotate("first")
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def rotate(self, key_id: str) -> None:
        self.key_id = key_id
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def document(self, path: str) -> dict[str, Any] | None:
        if self.away:
            return None
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}
        if path == "/jwks":
            self.fetches += 1
            public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
            return {"keys": [{**public, "kid": self.key_id, "use": "sig", "alg": "RS256"}]}
        return None

    def token(
        self, *, key: Any = None, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **say: Any
    ) -> str:
        claims = {"iss": self.url, "aud": self.audience, "sub": "alice", "scope": "tools:echo", "client_id": "app"}
        claims |= {"exp": int(time.time()) + 300, "iat": int(time.time())}
        claims |= say
        given = {"kid": self.key_id, "typ": "at+jwt", **(headers or {})}
        return jwt.encode({k: v for k, v in claims.items() if v is not None}, key or self.key, algorithm, headers=given)


@contextmanager
def issuing(audience: str) -> Iterator[Issuer]:
    """An issuer that answers until the block ends."""
    one = Issuer(audience)
    thread = threading.Thread(target=one.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield one
    finally:
        one.server.shutdown()
        thread.join()
        one.server.server_close()


def _handler(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = issuer.document(self.path)
            body = json.dumps(found or {}).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
