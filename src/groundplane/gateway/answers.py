"""Answers to questions: whether they are such as the question asks for, and what is stored of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any
from urllib.parse import urlsplit

from groundplane.core.errors import InvalidArgument
from groundplane.gateway.parameters import ArgumentCheck
from groundplane.jobs.port import Question

_COMPLETION = {
    "type": "object",
    "properties": {
        "role": {"enum": ["assistant", "user"]},
        "content": {"type": ["object", "array"]},
        "model": {"type": "string"},
        "stopReason": {"type": ["string", "null"]},
    },
    "required": ["role", "content", "model"],
}
_ROOT = {"type": "object", "properties": {"uri": {"type": "string"}}, "required": ["uri"]}
_ROOTS = {"type": "object", "properties": {"roots": {"type": "array", "items": _ROOT}}, "required": ["roots"]}
_OF_KIND = {"sample": _COMPLETION, "roots": _ROOTS}


def checked_answer(question: Question, content: Any, action: str) -> Any:
    """The content to store: of an accepted answer with the defaults of the question's form filled in, of others None.

    A form of one field takes the value alone too; nulls of fields that may be left out are left out, as forms send
    them. Raises `invalid_argument` that names the field and shows the value.
    """
    if action != "accept":
        if content is not None:
            raise InvalidArgument(f"content: {action!r} has none; leave it out", details={"field": "content"})
        return None
    owner = f"question {question.question_id!r}"
    if question.kind != "elicit":
        return ArgumentCheck(owner, _OF_KIND[question.kind], root="content")(content)
    schema = question.schema or {"type": "object", "properties": {}}
    content = _as_object(schema, content)
    filled = ArgumentCheck(owner, {**schema, "additionalProperties": False}, root="content")(content)
    for name, field in schema["properties"].items():
        if name in filled and "format" in field:
            _check_format(name, filled[name], field["format"])
    return filled


def _as_object(schema: Mapping[str, Any], content: Any) -> Any:
    fields = schema["properties"]
    if isinstance(content, dict):
        required = schema.get("required", ())
        return {name: value for name, value in content.items() if value is not None or name in required}
    return {next(iter(fields)): content} if len(fields) == 1 and content is not None else content


def _check_format(name: str, text: str, wanted: str) -> None:
    fits = _FORMATS.get(wanted)
    try:
        good = fits is None or fits(text)
    except ValueError:
        good = False
    if not good:
        raise InvalidArgument(f"content.{name}: {text[:200]!r} is no {wanted}", details={"field": f"content.{name}"})


def _is_email(text: str) -> bool:
    local, at, host = text.rpartition("@")
    return bool(local and at and host) and text.isprintable() and " " not in text


def _is_moment(text: str) -> bool:
    return "T" in text.upper() and datetime.fromisoformat(text.upper()).tzinfo is not None


_FORMATS: dict[str, Callable[[str], bool]] = {
    "email": _is_email,
    "uri": lambda text: bool(urlsplit(text).scheme) and text.isascii() and " " not in text,
    "date": lambda text: len(text) == 10 and bool(date.fromisoformat(text)),
    "date-time": _is_moment,
}

__all__ = ["checked_answer"]
