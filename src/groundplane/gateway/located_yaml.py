"""YAML as plain values that remember where they stood: what error messages with file and line are made of.

Only the JSON-like part of YAML is accepted. Duplicate keys, foreign tags, keys that are not text, and documents that
grow by aliases are errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from groundplane.core.errors import InvalidArgument

FILE_BYTES_MAX = 1024 * 1024
NODES_MAX = 100_000
DEPTH_MAX = 50
_VALUE_SHOWN_MAX = 120
_TAG = "tag:yaml.org,2002:"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong, and where."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field + ': ' if self.field else ''}{self.message}"


class Located(msgspec.Struct, frozen=True, kw_only=True):
    """A value and its place. A mapping is a dict of `Located` by key, a sequence a list of `Located`."""

    value: Any
    file: str
    line: int
    field: str

    def problem(self, message: str) -> Problem:
        """What is wrong with this value."""
        return Problem(file=self.file, line=self.line, field=self.field, message=message)

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def shown(self) -> str:
        """The value as it appears in messages, cut short."""
        return shown(self.plain())


def shown(value: Any) -> str:
    """`repr`, cut after 120 characters."""
    text = repr(value)
    return text if len(text) <= _VALUE_SHOWN_MAX else text[:_VALUE_SHOWN_MAX] + "…"


class Unreadable(Exception):
    """The file has problems that stop reading it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def fail(problems: list[Problem]) -> None:
    """Raise `InvalidArgument` that lists all of `problems`, first the first; nothing where there are none."""
    if not problems:
        return
    ordered = sorted(problems, key=lambda one: (one.file, one.line))
    raise InvalidArgument(
        "\n".join(str(one) for one in ordered),
        details={"problems": [msgspec.to_builtins(one) for one in ordered]},
    )


def read_yaml(path: Path) -> Located:
    """The one document of `path`. Raises `Unreadable`."""
    name = str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(Problem(file=name, line=1, field="", message=f"cannot be read: {error.strerror}")) from error
    if len(data) > FILE_BYTES_MAX:
        message = f"has {len(data)} bytes, more than {FILE_BYTES_MAX}"
        raise Unreadable(Problem(file=name, line=1, field="", message=message))
    return read_text(data, name)


def read_text(data: bytes, name: str) -> Located:
    """The one document in `data`; `name` stands for the file in messages. Raises `Unreadable`."""
    try:
        node = yaml.compose(data.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Unreadable(Problem(file=name, line=line, field="", message="is not UTF-8")) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"is not YAML: {error.problem or error.context}"
        raise Unreadable(Problem(file=name, line=mark.line + 1 if mark else 1, field="", message=message)) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise Unreadable(Problem(file=name, line=1, field="", message=f"is not YAML: {error}")) from error
    if node is None:
        raise Unreadable(Problem(file=name, line=1, field="", message="is empty; list tools"))
    return _Reader(name).read(node, "", 0)


class _Reader:
    def __init__(self, file: str) -> None:
        self._file = file
        self._nodes = 0

    def read(self, node: Any, field: str, depth: int) -> Located:
        self._nodes += 1
        line = node.start_mark.line + 1
        if self._nodes > NODES_MAX or depth > DEPTH_MAX:
            raise self._unreadable(line, field, "is too large; aliases may not make the document grow without bound")
        if isinstance(node, yaml.MappingNode):
            value: Any = dict(self._items(node, field, depth))
        elif isinstance(node, yaml.SequenceNode):
            value = [self.read(item, f"{field}[{n}]", depth + 1) for n, item in enumerate(node.value)]
        else:
            value = self._scalar(node, line, field)
        return Located(value=value, file=self._file, line=line, field=field)

    def _items(self, node: yaml.MappingNode, field: str, depth: int) -> Iterator[tuple[str, Located]]:
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _TAG + "null":
                raise self._unreadable(line, field, "has a key that is not text")
            key = key_node.value
            inner = f"{field}.{key}" if field else key
            if key in seen:
                raise self._unreadable(line, inner, f"is there twice, first on line {seen[key]}; keep one")
            seen[key] = line
            item = self.read(value_node, inner, depth + 1)
            yield key, Located(value=item.value, file=item.file, line=line, field=inner)

    def _scalar(self, node: Any, line: int, field: str) -> Any:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        try:
            if kind in ("int", "float"):
                value = yaml.constructor.SafeConstructor().construct_object(node)
                if isinstance(value, float) and not math.isfinite(value):
                    raise self._unreadable(line, field, f"{text!r} is not a finite number")
                return value
            if kind == "bool":
                return text.lower() in ("true", "yes", "on")
        except ValueError as error:
            raise self._unreadable(line, field, f"{shown(text)} is not a number") from error
        if kind == "null":
            return None
        if kind in ("str", "timestamp"):
            return text
        raise self._unreadable(line, field, f"has the tag {node.tag!r}; use plain text, numbers, true, false, null")

    def _unreadable(self, line: int, field: str, message: str) -> Unreadable:
        return Unreadable(Problem(file=self._file, line=line, field=field, message=message))
