"""What obstore has no calls for, over boto3 in threads of its own: buckets, versions, lifecycle, uploads in parts.

boto3 is imported and its threads are started with the first call.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from groundplane.backends.s3.address import S3Address
from groundplane.backends.s3.errors import code_of, extra_missing, translate
from groundplane.core.errors import Closed, GroundplaneError, Internal

T = TypeVar("T")

_THREADS = 8
_CLOSE_S = 5.0


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One version of an object: id, bytes, etag, Unix ms, whether it is the present one; `deleted` for the mark that a
    deletion left.
    """

    name: str
    version: str
    size: int = 0
    etag: str = ""
    modified_at: int = 0
    present: bool = False
    deleted: bool = False


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """An upload in parts that was begun and neither completed nor aborted."""

    name: str
    id: str
    begun_at: int


class LifecycleRule(msgspec.Struct, frozen=True, kw_only=True):
    """What the store does by itself with the objects below `prefix` of the bucket. Whole days, as S3 counts them.

    `expire_days` deletes objects; `keep_versions` deletes all but so many earlier versions, a day after they were
    replaced; `abort_uploads_days` removes the parts of uploads that were never completed.
    """

    id: str
    prefix: str = ""
    expire_days: int | None = None
    keep_versions: int | None = None
    abort_uploads_days: int | None = None


class Bucket:
    """Administration of one bucket, and what goes around single requests. Calls block a thread, never the loop."""

    def __init__(self, address: S3Address) -> None:
        self.address = address
        self._lock = threading.Lock()
        self._client: Any = None
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    async def create(self) -> bool:
        """Make the bucket; False where it was there (and is ours)."""
        given: dict[str, Any] = {}
        if self.address.endpoint is None and self.address.region != "us-east-1":
            given["CreateBucketConfiguration"] = {"LocationConstraint": self.address.region}

        def work(client: Any) -> bool:
            try:
                client.create_bucket(Bucket=self.address.bucket, **given)
            except client.exceptions.BucketAlreadyOwnedByYou:
                return False
            return True

        return await self.run(work, "blobs: creating the bucket")

    async def set_versioning(self, enabled: bool) -> None:
        """Keep earlier versions from now on, or no more; those that are there stay."""
        state = {"Status": "Enabled" if enabled else "Suspended"}
        await self._call("put_bucket_versioning", "blobs: versioning", VersioningConfiguration=state)

    async def versioning(self) -> bool:
        """Whether earlier versions are kept."""
        found = await self._call("get_bucket_versioning", "blobs: versioning")
        return bool(found.get("Status") == "Enabled")

    async def set_lifecycle(self, rules: Sequence[LifecycleRule], others: Sequence[Mapping[str, Any]] = ()) -> None:
        """Replace the rules of the whole bucket by these and `others` (in the words of S3); none removes them all.
        `unsupported` where the store has no such rules, `invalid_argument` for one that it does not know.
        """
        doing = "lifecycle: setting the rules"
        wanted = [*others, *(_rule(one) for one in rules)]
        if wanted:
            given = {"LifecycleConfiguration": {"Rules": wanted}}
            await self._call("put_bucket_lifecycle_configuration", doing, **given)
        else:
            await self._call("delete_bucket_lifecycle", doing)

    async def lifecycle(self) -> list[dict[str, Any]]:
        """The rules of the bucket, in the words of S3."""

        def work(client: Any) -> list[dict[str, Any]]:
            try:
                return list(client.get_bucket_lifecycle_configuration(Bucket=self.address.bucket)["Rules"])
            except client.exceptions.ClientError as error:
                if code_of(error)[0] == "NoSuchLifecycleConfiguration":
                    return []
                raise

        return await self.run(work, "lifecycle: reading the rules")

    async def versions(self, name: str, limit: int, doing: str) -> list[Version]:
        """Versions of one object, newest first, with the marks of deletions."""

        def work(client: Any) -> list[Version]:
            pages = client.get_paginator("list_object_versions").paginate(Bucket=self.address.bucket, Prefix=name)
            found: list[Version] = []
            for page in pages:
                entries = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
                found += [_version(one) for one in entries if one["Key"] == name]
                if len(found) > limit or all(one["Key"] != name for one in entries):
                    break  # names are in order: what follows is of others
            found.sort(key=lambda one: (one.present, one.modified_at), reverse=True)
            return found[:limit]

        return await self.run(work, doing)

    async def delete_version(self, name: str, version: str, doing: str) -> None:
        """Remove one version for good. One that is not there is no error."""
        await self._call("delete_object", doing, Key=name, VersionId=version)

    async def uploads(self, prefix: str, doing: str) -> list[Upload]:
        """Uploads that are under way below a prefix, at most some ten thousand."""

        def work(client: Any) -> list[Upload]:
            # MinIO answers for a prefix only with uploads of that very name: all are asked for
            pages = client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.address.bucket, PaginationConfig={"MaxItems": 10_000}
            )
            return [
                Upload(name=one["Key"], id=one["UploadId"], begun_at=_unix_ms(one["Initiated"]))
                for page in pages
                for one in page.get("Uploads", [])
                if one["Key"].startswith(prefix)
            ]

        return await self.run(work, doing)

    async def begin(self, name: str, content_type: str, metadata: Mapping[str, str], doing: str) -> str:
        """Begin an upload in parts; its id."""
        found = await self._call(
            "create_multipart_upload", doing, Key=name, ContentType=content_type, Metadata=dict(metadata)
        )
        return str(found["UploadId"])

    async def part(self, name: str, upload: str, number: int, body: Any, doing: str) -> str:
        """Upload one part (a file-like object); its etag."""
        found = await self._call(
            "upload_part", doing, Key=name, UploadId=upload, PartNumber=number, Body=body, ContentLength=len(body)
        )
        return str(found["ETag"])

    async def complete(
        self, name: str, upload: str, etags: Sequence[str], *, create: bool, if_match: str | None, doing: str
    ) -> str:
        """Make the parts the object, all at once; its etag without quotes."""
        condition = {"IfNoneMatch": "*"} if create else {"IfMatch": f'"{if_match}"'} if if_match is not None else {}
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        found = await self._call(
            "complete_multipart_upload", doing, Key=name, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
        )
        if "ETag" not in found:  # an error may come with status 200: boto3 raises for one that it can read
            raise Internal(f"{doing} in {self.address.shown}: the store gave no etag")
        return str(found["ETag"]).strip('"')

    async def abort(self, name: str, upload: str, doing: str) -> None:
        """Throw the parts away. An upload that is not there any more is no error."""

        def work(client: Any) -> None:
            try:
                client.abort_multipart_upload(Bucket=self.address.bucket, Key=name, UploadId=upload)
            except client.exceptions.NoSuchUpload:
                return

        await self.run(work, doing)

    async def run(self, work: Callable[[Any], T], doing: str) -> T:
        """`work(client)` in a thread. Cancelled, it goes on there; what it returns is dropped."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool(), lambda: work(self._connected()))
        except GroundplaneError:
            raise
        except Exception as error:
            if _is_the_clients(error):
                raise translate(error, doing, self.address) from error
            raise

    async def aclose(self) -> None:
        """End the threads; one that is stuck in a request is not waited for longer than 5 s."""
        self._closed = True
        pool, self._threads = self._threads, None
        if pool is None:
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def wait() -> None:
            pool.shutdown(wait=True, cancel_futures=True)
            with contextlib.suppress(RuntimeError):  # the loop did not wait for it, and is closed
                loop.call_soon_threadsafe(ended.set)

        waiter = threading.Thread(target=wait, name="groundplane-s3-close", daemon=True)
        waiter.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await ended.wait()
            waiter.join()
        if self._client is not None:
            self._client.close()
            self._client = None

    def _pool(self) -> ThreadPoolExecutor:
        if self._closed:
            raise Closed("blobs: the store is closed; open it again to use it")
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="groundplane-s3")
        return self._threads

    async def _call(self, method: str, doing: str, **given: Any) -> Any:
        return await self.run(lambda client: getattr(client, method)(Bucket=self.address.bucket, **given), doing)

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = _client(self.address)
            return self._client


def _client(address: S3Address) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise extra_missing() from error

    secret, token = address.secret_key, address.session_token
    return boto3.Session().client(
        "s3",
        endpoint_url=address.endpoint,
        region_name=address.region,
        aws_access_key_id=address.access_key,
        aws_secret_access_key=secret.reveal() if secret is not None else None,
        aws_session_token=token.reveal() if token is not None else None,
        verify=address.ca,
        config=Config(
            connect_timeout=address.connect_timeout_s,
            read_timeout=address.timeout_s,
            retries={"total_max_attempts": 1},
            max_pool_connections=_THREADS,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "virtual" if address.virtual_host else "path", "payload_signing_enabled": False},
        ),
    )


def _is_the_clients(error: Exception) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    return isinstance(error, BotoCoreError | ClientError | HTTPClientError)


def _rule(rule: LifecycleRule) -> dict[str, Any]:
    made: dict[str, Any] = {"ID": rule.id, "Status": "Enabled", "Filter": {"Prefix": rule.prefix}}
    if rule.expire_days is not None:
        made["Expiration"] = {"Days": rule.expire_days}
    if rule.keep_versions is not None:
        made["NoncurrentVersionExpiration"] = {"NoncurrentDays": 1, "NewerNoncurrentVersions": rule.keep_versions}
    if rule.abort_uploads_days is not None:
        made["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": rule.abort_uploads_days}
    return made


def _version(entry: Mapping[str, Any]) -> Version:
    return Version(
        name=entry["Key"],
        version=entry["VersionId"],
        size=entry.get("Size", 0),
        etag=str(entry.get("ETag", "")).strip('"'),
        modified_at=_unix_ms(entry["LastModified"]),
        present=bool(entry["IsLatest"]),
        deleted="ETag" not in entry,
    )


def _unix_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
