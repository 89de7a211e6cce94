"""`groundplane config`: what holds, and where it came from."""

from __future__ import annotations

from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_OK
from groundplane.core.settings import shown


def show(*, common: Common = COMMON) -> int:
    """Print every setting with its value and its origin; secrets are masked.

    Flags come before the environment, the environment before --env-file, then groundplane.toml, then defaults.

    Examples:

      groundplane config show

      groundplane config show --config production.toml --json
    """
    loaded = common.load()
    rows = shown(loaded)
    common.output.table(rows, ("key", "value", "origin", "variable"), empty="", value={
        "settings": {row["key"]: {"value": row["value"], "origin": row["origin"]} for row in rows},
        "notes": loaded.notes,
    })  # fmt: skip
    for note in loaded.notes:
        common.output.note(f"note: {note}")
    return EXIT_OK
