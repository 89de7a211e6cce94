"""`groundplane bus`: call services, publish events, send commands, look on."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from groundplane.bus import Bus, Message
from groundplane.bus.subjects import two_parts
from groundplane.cli import state_folder
from groundplane.cli.arguments import parse_arguments
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_OK, Output
from groundplane.core.codec import decode
from groundplane.core.errors import InvalidArgument, Unavailable
from groundplane.plane import Plane
from groundplane.services.leadership import ask_leader

Words = Annotated[str, Parameter(help="name=text, or name:=JSON.")]
_WAITING_MAX = 10_000


def publish(
    event: str,
    /,
    *arguments: Words,
    version: Annotated[str, Parameter(help="Version of the payload's shape.")] = "1.0",
    event_id: Annotated[str, Parameter(name="--id", help="Repeats of this id within two minutes are dropped.")] = "",
    cloudevent: Annotated[bool, Parameter(negative="", help="Write it as CloudEvents 1.0.")] = False,
    common: Common = COMMON,
) -> int:
    """Publish an event, DOMAIN.TYPE; durable when it returns.

    Examples:

      groundplane bus publish orders.created id:=7 city=Zürich
    """
    domain, kind = two_parts("event", event, "DOMAIN.TYPE, such as orders.created", more=True)
    payload = _values(arguments)

    async def work(bus: Bus) -> int:
        published = await bus.publish(
            domain, kind, payload, version=version, event_id=event_id, as_cloudevent=cloudevent
        )
        common.output.result({"event_id": published}, published)
        return EXIT_OK

    return _run(common, work)


def request(
    method: str,
    /,
    *arguments: Words,
    timeout: Annotated[float, Parameter(help="Seconds to wait for the answer.")] = 5.0,
    instance: Annotated[str | None, Parameter(help="Ask this instance.")] = None,
    common: Common = COMMON,
) -> int:
    """Call a method, SERVICE.METHOD, and print its result. Where one instance is active, that one is found and asked.

    Examples:

      groundplane bus request quotes.get symbol=ACME
    """
    service, name = two_parts("method", method, "SERVICE.METHOD, such as quotes.get")
    params = _values(arguments)

    async def work(bus: Bus) -> int:
        async def ask(whom: str | None) -> Any:
            return await bus.request(service, name, params, timeout_s=timeout, instance=whom)

        try:
            result = await ask(instance)
        except Unavailable as error:
            if error.reason != "not_active" or instance is not None:
                raise
            result = await ask_leader(ask, timeout_s=timeout)
        common.output.result(result)
        return EXIT_OK

    return _run(common, work)


def send(
    command: str,
    /,
    *arguments: Words,
    priority: Annotated[Literal["low", "normal", "high", "critical"], Parameter(help="How urgent it is.")] = "normal",
    retries: Annotated[int, Parameter(help="Attempts after the first.")] = 3,
    timeout: Annotated[float, Parameter(help="Seconds that it may take in all.")] = 300.0,
    detach: Annotated[bool, Parameter(negative="", help="Print its id and do not wait for it.")] = False,
    common: Common = COMMON,
) -> int:
    """Send a command, SERVICE.COMMAND; follow it and print its result.

    Examples:

      groundplane bus send reports.render month:=1

      groundplane bus send reports.render month:=1 --priority critical --detach
    """
    service, name = two_parts("command", command, "SERVICE.COMMAND, such as reports.render")
    payload = _values(arguments)
    options: dict[str, Any] = {"priority": priority, "max_retries": retries, "timeout_s": timeout}

    async def work(bus: Bus) -> int:
        if detach:
            sent = await bus.send(service, name, payload, **options)
            common.output.result(sent, sent.command_id)
            return EXIT_OK
        async with bus.track(service, name, payload, **options) as tracked:
            async for told in tracked.progress():
                common.output.note(f"{told.percent:5.1f} %  {told.message}".rstrip())
            common.output.result(await tracked.result())
        return EXIT_OK

    return _run(common, work)


def tail(
    pattern: str = "events.>",
    /,
    *,
    count: Annotated[int | None, Parameter(help="End after so many messages.")] = None,
    common: Common = COMMON,
) -> int:
    """Print messages as they pass, on whole subjects: events, commands, progress, requests. What passed before is not
    shown.

    Examples:

      groundplane bus tail 'events.orders.>'

      groundplane bus tail 'commands.progress.*' --count 10 --json
    """
    if count is not None and count < 1:
        raise InvalidArgument(f"count: {count!r} must be at least 1")

    async def work(bus: Bus) -> int:
        waiting: asyncio.Queue[Message] = asyncio.Queue(_WAITING_MAX)
        lost = 0

        def take(message: Message) -> None:
            nonlocal lost
            if waiting.full():
                lost += 1
            else:
                waiting.put_nowait(message)

        try:
            async with bus.listen(pattern, take):
                common.output.note(f"listening on {pattern!r}; Ctrl-C ends it")
                shown = 0
                while count is None or shown < count:
                    _show(await waiting.get(), common.output)
                    shown += 1
        finally:
            if lost:
                common.output.note(f"{lost} messages passed faster than they were printed")
        return EXIT_OK

    return _run(common, work)


def _show(message: Message, output: Output) -> None:
    try:
        content = msgspec.json.encode(decode(message.payload))
    except (InvalidArgument, TypeError):  # it is not ours, or has what JSON has not
        content = msgspec.json.encode(message.payload)
    text = f"{message.subject}  {content.decode()}"
    output.result({"subject": message.subject, "message": msgspec.Raw(content)}, text)


def _values(words: tuple[str, ...]) -> dict[str, Any]:
    given = parse_arguments(words)
    return {**given.texts, **given.values}


def _run(common: Common, work: Any) -> int:
    async def run() -> int:
        settings = common.settings()
        if settings.bus.scheme == "embedded":
            state_folder.existing(settings.state)
        async with Plane.open(settings, ports=("bus",)) as plane:
            code: int = await work(plane.bus)
            return code

    return asyncio.run(run())
