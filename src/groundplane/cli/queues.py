"""`groundplane queues`: what the broker of the queues is to be told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from groundplane.cli.jobs import opened
from groundplane.cli.loading import describe_apart
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_OK
from groundplane.core.errors import InvalidArgument
from groundplane.mesh.start import queue_specs
from groundplane.queues import Queues


def definitions(
    *,
    app: Annotated[str | None, Parameter(help="App whose queues are printed, as app:app; else those declared.")] = None,
    with_user: Annotated[
        bool, Parameter(negative="", help="Add the user of the URL: an empty broker that loads a file has none.")
    ] = False,
    out: Annotated[Path | None, Parameter(help="Write it to this file; only its owner may read it.")] = None,
    common: Common = COMMON,
) -> int:
    """Print what RabbitMQ is to load when it starts (`load_definitions`): exchange, queues, bindings.

    Limits of queues are not in it: whoever declares the queues later records them.

    Examples:

      groundplane queues definitions --app app:app --out definitions.json
    """
    description = describe_apart(app) if app is not None else None
    settings = common.settings()
    url = settings.queues.reveal()
    if not url.startswith(("amqp://", "amqps://")):
        raise InvalidArgument("queues: no broker is set; set GROUNDPLANE_QUEUES_URL=amqp://user:password@host/vhost")
    if description is not None:
        names = [spec.name for spec in queue_specs(list(description.actors.values()))]
    else:
        names = asyncio.run(_declared(common))
    found = Queues.definitions(url, namespace=settings.name, queues=names, with_user=with_user)
    text = msgspec.json.format(msgspec.json.encode(found), indent=2).decode()
    if out is None:
        print(text)
    else:
        out.touch(mode=0o600)
        out.write_text(text + "\n", encoding="utf-8")
        common.output.note(f"note: {len(names)} queues are in {str(out)!r}; set load_definitions to it")
    return EXIT_OK


async def _declared(common: Common) -> list[str]:
    async with opened(common, "queues") as plane:
        return [spec.name for spec in await plane.queues.queues()]
