"""`groundplane dead`: messages that are not tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from groundplane.cli.jobs import opened
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_OK, Output
from groundplane.core.clock import iso_z
from groundplane.core.dead_letters import DeadLetter
from groundplane.core.envelope import Envelope
from groundplane.core.errors import GroundplaneError, InvalidArgument
from groundplane.core.secrets import MASK
from groundplane.mesh.start import JOB_TOKEN
from groundplane.queues import Queues

_COLUMNS = ("id", "queue", "reason", "attempts", "redrives", "died_at", "error")


def list_(
    *,
    queue: Annotated[str | None, Parameter(help="Only those of this queue (an actor's name).")] = None,
    limit: Annotated[int, Parameter(help="At most so many, 1 to 1000.")] = 100,
    cursor: Annotated[str | None, Parameter(help="Go on where the page before ended.")] = None,
    common: Common = COMMON,
) -> int:
    """List dead letters, oldest first.

    Examples:

      groundplane dead list --queue parse --json
    """

    async def work(queues: Queues, output: Output) -> int:
        page = await queues.list_dead(queue, cursor=cursor, limit=limit)
        rows = [_row(letter) for letter in page.items]
        shown = [{**row, "error": (row["error"] or {}).get("message")} for row in rows]
        output.table(shown, _COLUMNS, empty="no dead letters", value={"dead": rows, "cursor": page.cursor})
        if page.cursor is not None:
            output.note(f"more: --cursor {page.cursor}")
        return EXIT_OK

    return _run(common, work)


def show(dead_id: str, /, *, common: Common = COMMON) -> int:
    """Show one dead letter: why it died, its attempts, its envelope.

    Examples:

      groundplane dead show DEAD_ID
    """

    async def work(queues: Queues, output: Output) -> int:
        letter = await queues.get_dead(dead_id)
        output.result({**_row(letter), "headers": letter.headers, "trace": letter.trace, "message": _message(letter)})
        return EXIT_OK

    return _run(common, work)


def redrive(
    dead_id: Annotated[str | None, Parameter(help="The letter; or --queue for all of a queue.")] = None,
    /,
    *,
    queue: Annotated[str | None, Parameter(help="All letters of this queue.")] = None,
    rate: Annotated[float | None, Parameter(help="At most so many a second.")] = None,
    limit: Annotated[int | None, Parameter(help="At most so many.")] = None,
    payload: Annotated[Path | None, Parameter(help="JSON file: replaces the payload of the envelope.")] = None,
    common: Common = COMMON,
) -> int:
    """Send a dead letter again, at attempt 1; or all of a queue.

    Examples:

      groundplane dead redrive DEAD_ID

      groundplane dead redrive --queue parse --rate 10
    """
    if (dead_id is None) == (queue is None):
        raise InvalidArgument("dead_id: give one dead letter, or --queue for all of a queue")
    if payload is not None and dead_id is None:
        raise InvalidArgument(f"payload: {str(payload)!r} edits one letter; give its id")

    async def work(queues: Queues, output: Output) -> int:
        if dead_id is None:
            count = await queues.redrive_all(str(queue), rate_per_s=rate, limit=limit)
        else:
            edited = None if payload is None else _edited(await queues.get_dead(dead_id), payload)
            await queues.redrive(dead_id, payload=edited)
            count = 1
        output.result({"redriven": count}, f"sent again: {count}")
        return EXIT_OK

    return _run(common, work)


def purge(
    *dead_ids: Annotated[str, Parameter(help="The letters; or --queue for all of a queue.")],
    queue: Annotated[str | None, Parameter(help="All letters of this queue.")] = None,
    limit: Annotated[int | None, Parameter(help="With --queue: at most so many, the oldest.")] = None,
    yes: Annotated[bool, Parameter(negative="", help="Needed with --queue: they are gone for good.")] = False,
    common: Common = COMMON,
) -> int:
    """Delete dead letters for good.

    Examples:

      groundplane dead purge DEAD_ID

      groundplane dead purge --queue parse --yes
    """
    if bool(dead_ids) == (queue is not None):
        raise InvalidArgument("dead_id: give dead letters, or --queue for all of a queue")
    if limit is not None and queue is None:
        raise InvalidArgument(f"limit: {limit!r} is for --queue; name the letters, or the queue")
    if queue is not None and not yes:
        raise InvalidArgument(f"yes: all dead letters of {queue!r} would be gone for good; add --yes")

    async def work(queues: Queues, output: Output) -> int:
        count = await (queues.purge(*dead_ids) if queue is None else queues.purge_all(queue, limit=limit))
        output.result({"purged": count}, f"deleted: {count}")
        return EXIT_OK

    return _run(common, work)


def _run(common: Common, work: Callable[[Queues, Output], Awaitable[int]]) -> int:
    async def inside() -> int:
        async with opened(common, "queues") as plane:
            return await work(plane.queues, common.output)

    return asyncio.run(inside())


def _row(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "queue": letter.queue,
        "message_id": letter.message_id,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "redrives": letter.redrives,
        "enqueued_at": iso_z(letter.enqueued_at),
        "died_at": iso_z(letter.died_at),
        "error": None if letter.error is None else msgspec.to_builtins(letter.error),
    }


def _message(letter: DeadLetter) -> Any:
    """The envelope without its job's token; what is no envelope is shown as it is."""
    try:
        shown = msgspec.to_builtins(Envelope.from_bytes(letter.payload))
    except GroundplaneError:
        return letter.payload
    if JOB_TOKEN in shown.get("headers", {}):
        shown["headers"][JOB_TOKEN] = MASK
    return shown


def _edited(letter: DeadLetter, payload: Path) -> bytes:
    try:
        value = msgspec.json.decode(payload.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidArgument(f"payload: {str(payload)!r} is no JSON file that can be read: {error}") from error
    envelope = Envelope.from_bytes(letter.payload)
    return msgspec.structs.replace(envelope, payload=value, claim=None).to_bytes()
