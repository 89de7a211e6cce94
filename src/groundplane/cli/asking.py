"""Questions of jobs at a terminal: a prompt for each field of the form that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_BOOLEANS = {"yes": True, "y": True, "true": True, "no": False, "n": False, "false": False}


def prompted(question: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """The content of an answer, typed in. Raises `EOFError` (Ctrl-D) where the person declines."""
    console.print(
        f"[bold]{_plain(question['actor'])} asks:[/] {_plain(question['message'])}  [dim](Ctrl-D declines)[/]"
    )
    schema = question["schema"]
    content = {}
    for name, field in schema["properties"].items():
        title = field.get("title") or (name if len(schema["properties"]) > 1 or name != "value" else "Answer")
        value = _field(str(title), field, console, needed=name in schema.get("required", ()))
        if value is not None:
            content[name] = value
    return content


def from_words(words: tuple[str, ...], question: Mapping[str, Any]) -> Any:
    """The content of an answer from a command line: `name=text` and `name:=JSON`, or the value alone of a form with one
    field. Raises `invalid_argument`.
    """
    from groundplane.cli.arguments import parse_arguments, typed

    schema = question["schema"] or {}
    fields = schema.get("properties", {})
    if len(words) == 1 and len(fields) == 1 and "=" not in words[0]:
        (name,) = fields
        words = (f"{name}={words[0]}",)
    content = typed(parse_arguments(words), schema)
    for name, value in content.items():
        kind = fields.get(name, {}).get("type")
        if kind == "boolean" and isinstance(value, str):
            content[name] = _BOOLEANS.get(value.lower(), value)
        if kind == "array" and isinstance(value, str):
            content[name] = [one.strip() for one in value.split(",")]
    return content


def _field(title: str, field: Mapping[str, Any], console: Console, *, needed: bool) -> Any:
    from rich.prompt import Confirm, FloatPrompt, IntPrompt, Prompt

    if field.get("description"):
        console.print(f"[dim]{_plain(str(field['description']))}[/]")
    kind, default = field["type"], field.get("default", ... if needed else None)
    if kind == "boolean":
        return Confirm.ask(_plain(title), console=console, default=default)
    if kind in ("integer", "number"):
        prompt = IntPrompt if kind == "integer" else FloatPrompt
        return prompt.ask(_plain(title), console=console, default=default)
    choices = _choices(field.get("items", field) if kind == "array" else field)
    for value, label in choices.items():
        console.print(f"  {_plain(value)}  [dim]{_plain(label)}[/]" if label != value else f"  {_plain(value)}")
    if kind == "array":
        shown = ",".join(default) if isinstance(default, list) else default
        text = Prompt.ask(f"{_plain(title)} (with commas)", console=console, default=shown)
        return [one.strip() for one in text.split(",") if one.strip()] if text is not None else None
    return Prompt.ask(_plain(title), console=console, choices=list(choices) or None, default=default) or None


def _choices(field: Mapping[str, Any]) -> dict[str, str]:
    """The values to choose from, each with its title."""
    titled = field.get("oneOf") or field.get("anyOf")
    if titled:
        return {one["const"]: one["title"] for one in titled}
    values = field.get("enum", [])
    return dict(zip(values, field.get("enumNames", values), strict=False))


def _plain(text: str) -> str:
    """Text of others, without markup and without what steers a terminal."""
    from rich.markup import escape

    return escape("".join(one if one.isprintable() or one == "\n" else "\ufffd" for one in text))


__all__ = ["from_words", "prompted"]
