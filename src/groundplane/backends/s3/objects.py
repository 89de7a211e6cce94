"""Objects of one bucket over obstore: single requests, errors translated, nothing retried."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import msgspec

from groundplane.backends.s3.address import S3Address
from groundplane.backends.s3.errors import code_of, extra_missing, translate
from groundplane.core.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    GroundplaneError,
    NotFound,
    PermissionDenied,
)

if TYPE_CHECKING:
    from obstore import GetResult

T = TypeVar("T")


class Stat(msgspec.Struct, frozen=True, kw_only=True):
    """What the store knows of an object: bytes, etag without quotes, Unix ms of its last change, its headers."""

    size: int
    etag: str
    modified_at: int
    headers: dict[str, str]


class Objects:
    """One bucket. Names are whole names in it. Every method is one request, unless it says otherwise.

    obstore closes connections when the last of its objects is gone, but for some that were not idle yet at that moment:
    these go `timeout_s` later. `ports` are those that they lead to.
    """

    ports: ClassVar[set[int]] = set()

    def __init__(self, address: S3Address) -> None:
        self.address = address
        self.native: Any = _store(address)
        self.ports.add(_port(address))

    async def check(self) -> None:
        """Prove that the bucket is there and that its objects may be listed. Bounded by both timeouts together."""
        limit_s = self.address.connect_timeout_s + self.address.timeout_s
        doing = "blobs: opening the bucket"
        try:
            async with asyncio.timeout(limit_s), aclosing(self._listed("", None, 1, doing)) as pages:
                await anext(pages, None)
        except TimeoutError as error:
            raise translate(error, doing, self.address) from error

    async def put(
        self, name: str, data: bytes, headers: Mapping[str, str], *, create: bool, if_match: str | None, doing: str
    ) -> str:
        """Store it in one request; its etag."""
        import obstore

        mode: Any = "create" if create else {"e_tag": f'"{if_match}"'} if if_match is not None else "overwrite"
        call = obstore.put_async(self.native, name, data, attributes=dict(headers), mode=mode, use_multipart=False)
        return _etag((await self.answer(call, doing))["e_tag"])

    async def get(self, name: str, *, version: str | None = None, doing: str) -> tuple[Stat, GetResult]:
        """The object's headers; its bytes are still to be read."""
        import obstore

        found = await self.answer(
            obstore.get_async(self.native, name, options={"version": version} if version else None), doing
        )
        return _stat(found), found

    async def stat(self, name: str, *, version: str | None = None, doing: str) -> Stat:
        """The object's headers alone."""
        import obstore

        options: Any = {"head": True, **({"version": version} if version else {})}
        found = await self.answer(obstore.get_async(self.native, name, options=options), doing)
        await self.answer(found.bytes_async(), doing)  # there are none, but a connection is free when they were read
        return _stat(found)

    async def names(self, folder: str, after: str | None, doing: str) -> AsyncGenerator[str, None]:
        """Names below a folder ("" for the bucket), after one of them, in the order of their bytes; a request per
        thousand.
        """
        async with aclosing(self._listed(folder, after, 1000, doing)) as pages:
            async for page in pages:
                for one in page:
                    yield one["path"]

    async def delete(self, names: Sequence[str], doing: str) -> None:
        """A request per thousand names. One that is not there is no error."""
        import obstore

        if names:
            await self.answer(obstore.delete_async(self.native, list(names)), doing)

    async def sign(self, name: str, expires_s: float, doing: str) -> str:
        """A URL that reads the object. No request."""
        import obstore

        return str(await self.answer(obstore.sign_async(self.native, "GET", name, timedelta(seconds=expires_s)), doing))

    def translated(self, error: BaseException, doing: str) -> GroundplaneError:
        """The error of ours for one of obstore's."""
        from obstore import exceptions

        if isinstance(
            error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError | exceptions.GenericError
        ):
            return translate(error, doing, self.address)
        code, _ = code_of(error)
        where = f"{doing} in {self.address.shown}"
        if code == "NoSuchBucket":
            return translate(error, doing, self.address)
        if isinstance(error, exceptions.AlreadyExistsError):
            return AlreadyExists(f"{where}: it is there already; leave out create to replace it")
        if isinstance(error, exceptions.PreconditionError):
            return Conflict(f"{where}: it is not what `if_match` wants; read it again")
        if isinstance(error, exceptions.NotFoundError | FileNotFoundError):
            return NotFound(f"{where}: it is not there; look at `list`")
        return translate(error, doing, self.address)

    def close(self) -> None:
        """Let go of the connections."""
        self.native = None

    async def _listed(self, folder: str, after: str | None, size: int, doing: str) -> AsyncGenerator[Any, None]:
        import obstore

        pages = obstore.list(self.native, folder or None, offset=after, chunk_size=size)
        while True:
            try:
                page = await anext(pages, None)
            except Exception as error:
                raise self.translated(error, doing) from error
            if page is None:
                return
            yield page

    async def answer(self, call: Awaitable[T], doing: str) -> T:
        """What a call of obstore gives, its error translated."""
        try:
            return await call
        except GroundplaneError:
            raise
        except Exception as error:
            raise self.translated(error, doing) from error


def _store(address: S3Address) -> Any:
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise extra_missing() from error
    client: Any = {
        "allow_http": bool(address.endpoint and address.endpoint.startswith("http://")),
        "connect_timeout": timedelta(seconds=address.connect_timeout_s),
        "read_timeout": timedelta(seconds=address.timeout_s),
        "timeout": timedelta(days=1),  # of a whole transfer: what is too slow is found by the time between two reads
    }
    if address.ca is not None:
        client["root_certificate"] = _certificates(address.ca)
    given: dict[str, Any] = {"region": address.region, "virtual_hosted_style_request": address.virtual_host}
    if address.endpoint is not None:
        given["endpoint"] = address.endpoint
    if address.access_key is not None and address.secret_key is not None:
        given |= {"access_key_id": address.access_key, "secret_access_key": address.secret_key.reveal()}
        if address.session_token is not None:
            given["session_token"] = address.session_token.reveal()
    else:
        given["credential_provider"] = _chain(address)
    # the objects' own SHA-256 is a signed header, so that the body need not be hashed again for the signature
    return S3Store(
        address.bucket, client_options=client, retry_config={"max_retries": 0}, unsigned_payload=True, **given
    )


def _chain(address: S3Address) -> Any:
    """The credentials that boto3 finds: profile, web identity, container, instance."""
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise extra_missing() from error
    try:
        return Boto3CredentialProvider(boto3.Session(region_name=address.region))
    except ValueError as error:
        raise PermissionDenied(
            f"blobs: there are no credentials for {address.shown}; put key:secret@ before the bucket, or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            reason="store_keys_refused",
        ) from error


def _port(address: S3Address) -> int:
    parts = urlsplit(address.endpoint or "https://amazonaws.com")
    return parts.port or (80 if parts.scheme == "http" else 443)


def _certificates(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise FailedPrecondition(f"blobs: ca={path!r} cannot be read: {error.strerror}; mend the URL") from error


def _stat(found: GetResult) -> Stat:
    meta = found.meta
    return Stat(
        size=meta["size"],
        etag=_etag(meta["e_tag"]),
        modified_at=round(meta["last_modified"].timestamp() * 1000),
        headers={str(name): str(value) for name, value in found.attributes.items()},
    )


def _etag(given: str | None) -> str:
    return (given or "").strip('"')


__all__ = ["Objects", "Stat"]
