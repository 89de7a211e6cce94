"""Names of actors, queues, tools and planes: what may be one, and a suggestion where it may not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from groundplane.core.errors import InvalidArgument

NAME_MAX = 128
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def check_name(field: str, value: object) -> str:
    """`value` when it is a name: 1 to 128 of ASCII letters, digits, `.`, `_`, `-`, beginning and ending with a letter
    or digit.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= NAME_MAX or not _NAME.fullmatch(value):
        raise InvalidArgument(
            f"{field}: {value!r} is not a name; use 1 to {NAME_MAX} letters, digits, '.', '_' or '-', "
            "beginning and ending with a letter or a digit"
        )
    return value


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, or nothing."""
    near = difflib.get_close_matches(value, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
