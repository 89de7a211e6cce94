"""What a URL says about a bucket: where it is, who asks, how long to wait."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from groundplane.core.environment import EnvironmentView
from groundplane.core.errors import InvalidArgument
from groundplane.core.names import did_you_mean
from groundplane.core.secrets import Secret, mask_url

PREFIX_BYTES_MAX = 200
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_OPTIONS = ("endpoint", "region", "timeout", "connect_timeout", "style", "keys", "versions", "create", "ca")


class S3Address(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket and a prefix in it. `endpoint` is None for Amazon's own; without keys the SDK's chain is asked (profile,
    web identity, instance). Times in seconds; `ca` is a file of PEM certificates.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str = "us-east-1"
    access_key: str | None = None
    secret_key: Secret | None = None
    session_token: Secret | None = None
    timeout_s: float = 30.0
    connect_timeout_s: float = 5.0
    virtual_host: bool = False
    keys: Literal["marked", "plain"] = "marked"
    versions: Literal["keys", "bucket"] = "keys"
    create: bool = False
    ca: str | None = None

    @property
    def shown(self) -> str:
        """For people: where it is, without secrets."""
        place = f" at {self.endpoint}" if self.endpoint else f" in {self.region}"
        return f"'s3://{self.bucket}{'/' + self.prefix if self.prefix else ''}'{place}"

    def __repr__(self) -> str:
        return f"<S3Address {self.shown}>"


def parse_url(field: str, url: str, environ: Mapping[str, str] | None = None) -> S3Address:
    """The bucket in `s3://bucket/prefix?endpoint=http://host:port&region=…`; `invalid_argument` for another URL.

    Credentials are those of the URL (`s3://key:secret@bucket`, or in the endpoint), else `AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`, each also as `…_FILE`. Endpoint and region fall back to
    `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_REGION` and `AWS_DEFAULT_REGION`.
    """
    shown, environment = mask_url(url), EnvironmentView(os.environ if environ is None else environ)
    try:
        parts = urlsplit(url)
        given = _query(field, shown, parts.query)
        if parts.fragment:
            raise ValueError("it has a '#'; write '%23' in a secret")
        bucket = parts.netloc.rpartition("@")[2]
        if not _BUCKET.fullmatch(bucket):
            raise ValueError(f"{bucket!r} is not the name of a bucket: 3 to 63 of a-z, 0-9, '-' and '.'")
        endpoint, keys_of_endpoint = _endpoint(given.get("endpoint") or _variable(environment, *_ENDPOINTS))
        access_key, secret_key = _user(parts) or keys_of_endpoint or _keys_of(environment)
        token = environment.get("AWS_SESSION_TOKEN", secret=True)
        own_keys = bool(_user(parts) or keys_of_endpoint)
        return S3Address(
            bucket=bucket,
            prefix=_prefix(unquote(parts.path)),
            endpoint=endpoint,
            region=given.get("region") or _variable(environment, "AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1",
            access_key=access_key,
            secret_key=Secret(secret_key) if secret_key is not None else None,
            session_token=Secret(token.value) if token is not None and access_key and not own_keys else None,
            **_options(given),
        )
    except ValueError as error:
        raise InvalidArgument(f"{field}: {shown!r} cannot be used: {error}") from error


_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def _query(field: str, shown: str, query: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise InvalidArgument(
                f"{field}: {shown!r} has the unknown option {name!r}; use {', '.join(_OPTIONS)}"
                f"{did_you_mean(name, _OPTIONS)}"
            )
        if name in given:
            raise ValueError(f"{name} is given twice")
        given[name] = value
    return given


def _endpoint(text: str | None) -> tuple[str | None, tuple[str, str] | None]:
    if not text:
        return None, None
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("endpoint must be http://host:port or https://host")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("endpoint must be scheme, host and port alone; the bucket stands before it")
    _ = parts.port  # raises for one that is none
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", _user(parts)


def _user(parts: SplitResult) -> tuple[str, str] | None:
    if parts.username is None and parts.password is None:
        return None
    if not parts.username or not parts.password:
        raise ValueError("it has an access key without a secret, or the other way round; give key:secret")
    return unquote(parts.username), unquote(parts.password)


def _keys_of(environment: EnvironmentView) -> tuple[str | None, str | None]:
    key = environment.get("AWS_ACCESS_KEY_ID", secret=True)
    secret = environment.get("AWS_SECRET_ACCESS_KEY", secret=True)
    if (key is None) != (secret is None):
        raise ValueError("of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY only one is set; set both")
    return (key.value, secret.value) if key is not None and secret is not None else (None, None)


def _variable(environment: EnvironmentView, *names: str) -> str | None:
    found = (environment.get(name) for name in names)
    return next((one.value for one in found if one is not None), None)


def _prefix(path: str) -> str:
    prefix = path.strip("/")
    if any(segment in ("", ".", "..") for segment in prefix.split("/") if prefix) or not prefix.isprintable():
        raise ValueError(f"the prefix {prefix!r} has a segment that is empty, '.' or '..', or is not printable")
    if len(prefix.encode()) > PREFIX_BYTES_MAX:
        raise ValueError(f"the prefix {prefix!r} is longer than {PREFIX_BYTES_MAX} bytes")
    return prefix


def _options(given: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("timeout", "connect_timeout"):
        if name in given:
            found[f"{name}_s"] = _seconds(name, given[name])
    if "style" in given:
        found["virtual_host"] = _one_of("style", given["style"], ("path", "virtual")) == "virtual"
    if "keys" in given:
        found["keys"] = _one_of("keys", given["keys"], ("marked", "plain"))
    if "versions" in given:
        found["versions"] = _one_of("versions", given["versions"], ("keys", "bucket"))
    if "create" in given:
        found["create"] = _one_of("create", given["create"], ("true", "false")) == "true"
    if "ca" in given:
        found["ca"] = given["ca"]
    return found


def _seconds(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise ValueError(f"{name} is {text!r}, which is not a number of seconds above 0 and up to 3600")
    return value


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; use {' or '.join(map(repr, known))}{did_you_mean(value, known)}")
    return value
