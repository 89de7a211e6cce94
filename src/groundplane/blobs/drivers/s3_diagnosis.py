"""A look at a bucket: one listing, one small object that is written and deleted, and the clock of the answer."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from groundplane.backends.s3.address import parse_url
from groundplane.backends.s3.bucket import Bucket
from groundplane.backends.s3.errors import extra_missing
from groundplane.core.diagnosis import Diagnose, Diagnosis, Stopwatch

_PROBE = b"x" * 4096
_SECOND_MS = 1000


async def diagnose(url: str, *, namespace: str, names: Sequence[str] = ()) -> Diagnosis:
    """See `core.diagnosis`. Dates of HTTP have seconds only."""
    address = parse_url("blobs", url)
    if importlib.util.find_spec("obstore") is None:  # this look does without it, the driver does not
        raise extra_missing()
    bucket = Bucket(address)
    prefix = f"{address.prefix}/" if address.prefix else ""
    watch = Stopwatch()

    def listing(client: Any) -> dict[str, str]:
        found = client.list_objects_v2(Bucket=address.bucket, Prefix=prefix, MaxKeys=1)
        headers: dict[str, str] = found["ResponseMetadata"]["HTTPHeaders"]
        return {**headers, "stored": str(found.get("KeyCount", 0))}

    def writing(client: Any) -> None:
        key = f"{prefix}groundplane-doctor-{uuid.uuid4()}"
        made = client.put_object(Bucket=address.bucket, Key=key, Body=_PROBE)
        version = {"VersionId": made["VersionId"]} if made.get("VersionId") else {}
        client.delete_object(Bucket=address.bucket, Key=key, **version)

    try:
        headers = await bucket.run(listing, "blobs: listing the bucket")
        told = headers.get("date")
        ahead, error = (None, 0)
        if told:
            ahead, error = watch.ahead(parsedate_to_datetime(told).timestamp() * 1000, _SECOND_MS)
        await bucket.run(writing, "blobs: writing into the bucket")
    finally:
        await bucket.aclose()
    server = f"S3 ({headers['server']})" if headers.get("server") else "S3"
    return Diagnosis(server=server, stored=headers["stored"] != "0", clock_ahead_ms=ahead, clock_error_ms=error)


_: Diagnose = diagnose
