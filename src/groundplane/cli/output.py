"""What commands print: results on standard output, everything else on standard error, JSON where it is asked for."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from groundplane.core.errors import FailedPrecondition, GroundplaneError
from groundplane.core.reasons import REASONS
from groundplane.core.secrets import mask_urls

if TYPE_CHECKING:
    from rich.console import Console

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2
_LINE_MAX = 100
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Output:
    """One command's way to the user. `json` prints one JSON document (or line) for each result."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json

    def result(self, value: Any, text: str | None = None) -> None:
        """The command's result: `value` as JSON, or `text` for people."""
        if self.json or text is None:
            _write((to_json(value) if self.json else _for_people(value)) + "\n")
        elif text:
            _write(text.rstrip("\n") + "\n")

    def data(self, value: bytes) -> None:
        """Bytes as they are; on a terminal with an end of the line."""
        with _taking():
            sys.stdout.flush()
            sys.stdout.buffer.write(value)
            if sys.stdout.isatty() and not value.endswith(b"\n"):
                sys.stdout.buffer.write(b"\n")
            sys.stdout.buffer.flush()

    def table(
        self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, empty: str, value: Any = None
    ) -> None:
        """Rows as a table, or as JSON (`value` instead of the rows where it is given)."""
        if self.json:
            self.result(list(rows) if value is None else value)
        elif not rows:
            self.note(empty)
        else:
            _write(_table(rows, columns))

    def note(self, text: str) -> None:
        """A remark for people, on standard error."""
        if not self.json:
            sys.stderr.write(plain(text) + "\n")
            sys.stderr.flush()

    def error(self, error: GroundplaneError) -> None:
        """The error with its code, its reason and what to do."""
        show_error(error, json=self.json)


def show_error(error: GroundplaneError, *, json: bool) -> None:
    """An error on standard error: for people, or as one JSON line."""
    row = REASONS.get(error.reason)
    message = mask_urls(error.message)
    if json:
        record = {
            "code": error.code, "reason": error.reason, "message": message, "details": error.details,
            "retryable": error.retryable, "remedy": row.remedy if row else "",
        }  # fmt: skip
        sys.stderr.write(to_json({"error": record}) + "\n")
    else:
        red, reset = ("\x1b[31m", "\x1b[0m") if colourful(sys.stderr) else ("", "")
        kind = error.code + (f", {error.reason}" if error.reason else "")
        sys.stderr.write(f"{red}error{reset} [{kind}] {plain(message)}\n")
        if row is not None:
            sys.stderr.write(f"  {row.remedy}\n")
    sys.stderr.flush()


def exit_code(error: GroundplaneError) -> int:
    """2 for what the user gave wrongly, 1 for everything else."""
    return EXIT_USAGE if error.code == "invalid_argument" else EXIT_FAILURE


def colourful(stream: Any) -> bool:
    """Whether colours may be written: a terminal, and nobody said no (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and bool(stream.isatty())


def on_terminal() -> bool:
    """Whether somebody watches standard error: only then progress is shown."""
    return sys.stderr.isatty()


def console() -> Console:
    """A rich console on standard error, without colours where they are not wanted."""
    from rich.console import Console

    return Console(stderr=True, no_color=not colourful(sys.stderr), highlight=False)


def plain(text: str) -> str:
    """Text, perhaps of others, without what steers a terminal."""
    return _STEERING.sub("\ufffd", text)


def _write(text: str) -> None:
    """To standard output, at once."""
    with _taking():
        sys.stdout.write(text)
        sys.stdout.flush()


@contextlib.contextmanager
def _taking() -> Iterator[None]:
    """`failed_precondition` where standard output takes no more; a closed pipe stays what it is."""
    if sys.stdout is None:
        raise FailedPrecondition("output: standard output is closed; send it somewhere, perhaps to /dev/null")
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError):  # what is left in the buffer must not fail once more at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise FailedPrecondition(
            f"output: cannot be written: {error.strerror}; free space, or send it elsewhere"
        ) from error


def _for_people(value: Any) -> str:
    """On one line where that is short."""
    line = to_json(value, indent=0)
    return line if len(line) <= _LINE_MAX else to_json(value, indent=2)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON of anything that commands print; bytes that are UTF-8 as text, others in base64."""
    data = msgspec.json.encode(_shown(value))
    return data.decode() if indent is None else msgspec.json.format(data, indent=indent).decode()


def _shown(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, Mapping):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return value


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(one) for one in column) for column in zip(columns, *cells, strict=True)]
    width_max = 60 if sys.stdout.isatty() else 10_000
    lines = [[name.upper().replace("_", " ") for name in columns], *cells]
    return "".join(
        "  ".join(_cut(text, width_max).ljust(min(width, width_max)) for text, width in zip(line, widths, strict=True))
        .rstrip()
        + "\n"
        for line in lines
    )  # fmt: skip


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else to_json(value)
    return plain(" ".join(text.split()))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
