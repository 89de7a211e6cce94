"""Mutations of JSON and of bytes: what a client with a fault, or with a bad intent, could send. All from one seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

Slot: TypeAlias = tuple[Any, Any]
"""A dict or list, and a key or index in it."""

ATOMS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 2**31, 2**53 + 1, 2**63, -(2**70), 1e308, "", " ", "0", "null", "\x00", "ä€🜚\u2028",
    "a" * 300, "../../etc/passwd", "%00", "' OR 1=1 --", "<script>", "{{7*7}}", "\ud800", [], {}, [[]], [None],
    {"": None}, {"__proto__": {"x": 1}}, ["a"] * 50, "2026-07-28", "1999-01-01", "tools/call",
    "io.modelcontextprotocol/tasks",
)  # fmt: skip
WORDS: tuple[str, ...] = (
    "name", "arguments", "cursor", "_meta", "progressToken", "id", "method", "params", "jsonrpc", "result", "error",
    "protocolVersion", "capabilities", "clientInfo", "uri", "taskId", "inputResponses", "requestState", "task", "level",
)  # fmt: skip


def slots(value: Any) -> Iterator[Slot]:
    """Every place in a document, from the outside in."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from slots(value[key])


def mutated(rng: random.Random, document: Any, times: int) -> Any:
    """A copy, changed so many times."""
    box = [copy.deepcopy(document)]
    for _ in range(times):
        if places := list(slots(box)):
            holder, key = rng.choice(places)
            rng.choice(_CHANGES)(rng, holder, key)
    return box[0] if box else None


def encoded(rng: random.Random, document: Any) -> bytes:
    """As bytes: mostly JSON as it should be, sometimes with a fault of its own."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = '{"method": "ping", ' + text[1:]  # a key that is there twice
    data = text.encode("utf-8", "surrogatepass")
    return rng.choice(_BYTES)(rng, data) if rng.random() < 0.08 else data


def _drop(rng: random.Random, holder: Any, key: Any) -> None:
    del holder[key]


def _replace(rng: random.Random, holder: Any, key: Any) -> None:
    holder[key] = copy.deepcopy(rng.choice(ATOMS))


def _add(rng: random.Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[rng.choice(WORDS)] = copy.deepcopy(rng.choice(ATOMS))
    else:
        holder.insert(key, copy.deepcopy(rng.choice(ATOMS)))


def _rename(rng: random.Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[rng.choice((rng.choice(WORDS), key.upper(), key + " ", ""))] = holder.pop(key)


def _wrap(rng: random.Random, holder: Any, key: Any) -> None:
    holder[key] = rng.choice(([holder[key]], {"value": holder[key]}, [holder[key]] * 3, str(holder[key])))


def _deepen(rng: random.Random, holder: Any, key: Any) -> None:
    for _ in range(rng.choice((5, 60, 150, 250))):
        holder[key] = [holder[key]]


def _swap(rng: random.Random, holder: Any, key: Any) -> None:
    other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    holder[key], holder[other] = holder[other], holder[key]


_CHANGES: tuple[Callable[[random.Random, Any, Any], None], ...] = (
    _drop, _replace, _replace, _replace, _add, _rename, _wrap, _deepen, _swap,
)  # fmt: skip


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(max(1, len(data)))
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return (
        data[:at]
        + rng.choice((b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"[" * 2000, b"1e999", b"NaN"))
        + data[at:]
    )


_BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _cut, _flip, _insert, lambda rng, data: b"\xef\xbb\xbf" + data, lambda rng, data: data + data,
    lambda rng, data: data.decode("utf-8", "replace").encode("utf-16"), lambda rng, data: b"",
)  # fmt: skip
