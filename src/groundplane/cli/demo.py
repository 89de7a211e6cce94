"""`groundplane demo`: the library guide of the examples, from start to end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from groundplane.cli.repository import find

DEMO = "examples/library_guide/demo.py"


def demo(
    *,
    path: Annotated[Path | None, Parameter(help="Folder of code to read (default: the standard library).")] = None,
    json: Annotated[bool, Parameter(negative="", help="Print JSON lines.")] = False,
) -> int:
    """Make a library of Python code answerable, killing workers on the way: at most two minutes.

    Examples:

      groundplane demo

      groundplane demo --path ~/my-project
    """
    script = find(DEMO, "demo")
    arguments = [*(["--path", str(path)] if path is not None else []), *(["--json"] if json else [])]
    return subprocess.run([sys.executable, str(script), *arguments], cwd=os.getcwd(), check=False).returncode
