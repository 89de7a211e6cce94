"""`groundplane kv`: the plane's keys, read, written, listed and followed on the store itself."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from cyclopts import Parameter

from groundplane.cli import state_folder
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_OK, Output, to_json
from groundplane.core.clock import iso_z
from groundplane.core.durations import parse_duration
from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.kv import KV, Change, ChangeKind, Entry
from groundplane.plane import Plane

Bucket = Annotated[str, Parameter(help="The bucket.")]
_COLUMNS = ("key", "revision", "bytes", "written_at")


def get(key: str, /, *, bucket: Bucket = "default", common: Common = COMMON) -> int:
    """Print the value of a key, byte by byte (on a terminal with an end of the line); exit code 1 where there is none.

    Examples:

      groundplane kv get theme

      groundplane kv get theme --bucket settings --json
    """

    async def work(kv: KV, output: Output) -> int:
        entry = await kv.get(key)
        if entry is None:
            raise NotFound(f"key: {key!r} is not in the bucket {bucket!r}")
        if output.json:
            output.result({**_row(entry), **_shown(entry.value)})
        else:
            output.data(entry.value)
        return EXIT_OK

    return _run(common, bucket, work, looks=True)


def put(
    key: str,
    value: Annotated[str, Parameter(help="The value; - reads it from standard input.", allow_leading_hyphen=True)],
    /,
    *,
    ttl: Annotated[str | None, Parameter(help="How long it lives, as 30s; without it there is no end.")] = None,
    create: Annotated[bool, Parameter(negative="", help="Only where there is none.")] = False,
    revision: Annotated[int | None, Parameter(help="Only over the value with this revision.")] = None,
    bucket: Bucket = "default",
    common: Common = COMMON,
) -> int:
    """Write a value and print its revision.

    Examples:

      groundplane kv put theme dark

      groundplane kv put lock me --create --ttl 30s

      groundplane kv put plan - --revision 17 < plan.json
    """
    if create and revision is not None:
        raise InvalidArgument(f"revision: {revision!r} and --create exclude each other; give one of them")
    data = sys.stdin.buffer.read() if value == "-" else value.encode()
    ttl_s = parse_duration("ttl", ttl) if ttl is not None else None

    async def work(kv: KV, output: Output) -> int:
        if create:
            written = await kv.create(key, data, ttl_s=ttl_s)
        elif revision is not None:
            written = await kv.update(key, data, revision=revision, ttl_s=ttl_s)
        else:
            written = await kv.put(key, data, ttl_s=ttl_s)
        output.result({"key": key, "revision": written}, str(written))
        return EXIT_OK

    return _run(common, bucket, work)


def delete(
    key: str,
    /,
    *,
    revision: Annotated[int | None, Parameter(help="Only where it has this revision.")] = None,
    purge: Annotated[bool, Parameter(negative="", help="Forget older values too.")] = False,
    bucket: Bucket = "default",
    common: Common = COMMON,
) -> int:
    """Delete a key; one that is not there is no error.

    Examples:

      groundplane kv delete theme

      groundplane kv delete plan --revision 17
    """

    async def work(kv: KV, output: Output) -> int:
        await (kv.purge if purge else kv.delete)(key, revision=revision)
        output.note(f"deleted: {key}")
        return EXIT_OK

    return _run(common, bucket, work, looks=True)


def list_(
    prefix: str = "",
    /,
    *,
    limit: Annotated[int, Parameter(help="At most so many, 1 to 1000.")] = 100,
    cursor: Annotated[str | None, Parameter(help="Go on where the page before ended.")] = None,
    bucket: Bucket = "default",
    common: Common = COMMON,
) -> int:
    """List keys with their revisions and sizes, without their values.

    Examples:

      groundplane kv list

      groundplane kv list services/ --limit 10 --json
    """

    async def work(kv: KV, output: Output) -> int:
        page = await kv.keys(prefix, cursor=cursor, limit=limit)
        rows = [_row(entry) for entry in (await kv.get_many(page.items)).values()]
        output.table(rows, _COLUMNS, empty="no keys", value={"keys": rows, "cursor": page.cursor})
        if page.cursor is not None:
            output.note(f"more: --cursor {page.cursor!r}")
        return EXIT_OK

    return _run(common, bucket, work, looks=True)


def watch(
    prefix: str = "",
    /,
    *,
    key: Annotated[str | None, Parameter(help="Follow this key alone.")] = None,
    count: Annotated[int | None, Parameter(help="End after so many changes; else on Ctrl-C.")] = None,
    bucket: Bucket = "default",
    common: Common = COMMON,
) -> int:
    """Print what is there, then every change, one on a line.

    Examples:

      groundplane kv watch services/

      groundplane kv watch --key plan --json
    """
    if key is not None and prefix:
        raise InvalidArgument(f"prefix: {prefix!r} and --key {key!r} exclude each other; give one of them")
    if count is not None and count < 1:
        raise InvalidArgument(f"count: {count!r} is less than 1")

    async def work(kv: KV, output: Output) -> int:
        async with kv.watch(key, prefix=None if key is not None else prefix) as changes:
            left = count
            async for change in changes:
                _print(change, output)
                left = None if left is None else left - 1
                if left == 0:
                    break
        return EXIT_OK

    return _run(common, bucket, work, looks=True)


def _run(common: Common, bucket: str, work: Callable[[KV, Output], Awaitable[int]], *, looks: bool = False) -> int:
    """Run it on the bucket; what only looks makes neither state folder nor bucket."""
    settings = common.settings()
    if settings.kv.scheme == "embedded":
        (state_folder.existing if looks else state_folder.make)(settings.state)

    async def inside() -> int:
        async with (
            Plane.open(settings, ports=()) as plane,
            plane.bucket(bucket, ttl=True, create=not looks) as kv,
        ):
            return await work(kv, common.output)

    return asyncio.run(inside())


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "revision": entry.revision,
        "bytes": len(entry.value),
        "written_at": iso_z(entry.created_at),
    }


def _shown(value: bytes) -> dict[str, Any]:
    """A value in JSON, and how it is written there: text as it is, other bytes in base64."""
    try:
        return {"value": value.decode(), "encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"value": base64.b64encode(value).decode(), "encoding": "base64"}


def _print(change: Change, output: Output) -> None:
    row = {"kind": change.kind.value, "key": change.key, **_shown(change.value), "revision": change.revision}
    value = ""
    if change.kind is ChangeKind.PUT:
        value = to_json(row["value"]) if row["encoding"] == "utf-8" else f"base64:{row['value']}"
    output.result(row, f"{change.revision:<8} {change.kind.value:<8} {change.key}  {value}".rstrip())
