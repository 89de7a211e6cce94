"""A private certificate authority and a server certificate for localhost, made by `openssl`."""

from __future__ import annotations

from pathlib import Path

from groundplane.testing.servers.processes import run

_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


def make(folder: Path, *, days: int = 30) -> None:
    """`ca.pem`, `server.pem` and `server.key` in the folder. Raises `Unavailable` where openssl is missing."""
    folder.mkdir()
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", str(days)]
    authority = ["openssl", "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Test authority"]
    run([*authority, "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"],
        home=folder)  # fmt: skip
    run(["openssl", "req", "-x509", *key, "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "server.key",
         "-out", "server.pem", "-subj", "/CN=localhost", "-addext", _NAMES,
         "-addext", "basicConstraints=critical,CA:FALSE"], home=folder)  # fmt: skip
