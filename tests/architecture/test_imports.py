"""What an import really loads, seen in a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_LOADED = """
import json, sys
before = set(sys.modules)
{statement}
print(json.dumps(sorted(set(sys.modules) - before)))
"""

_CALLS = """
import json, sys
calls = 0
def count(frame, event, argument):
    global calls
    calls += event == "call"
sys.setprofile(count)
import groundplane
sys.setprofile(None)
print(json.dumps(calls))
"""


def _ask(program: str, *flags: str) -> object:
    run = subprocess.run(
        [sys.executable, *flags, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    return json.loads(run.stdout)


def _third_party(statement: str) -> set[str]:
    loaded = _ask(_LOADED.format(statement=statement))
    assert isinstance(loaded, list)
    tops = {name.split(".")[0] for name in loaded}
    return {top for top in tops if top not in sys.stdlib_module_names and not top.startswith("_")} - {"groundplane"}


@pytest.mark.req("CORE-04.1")
def test_importing_groundplane_loads_the_standard_library_and_msgspec_alone() -> None:
    assert _third_party("import groundplane") <= {"msgspec"}


@pytest.mark.req("CORE-04.1")
def test_declaring_an_app_loads_the_standard_library_and_msgspec_alone() -> None:
    optional_of_msgspec = {"typing_extensions"}  # msgspec looks for it by itself, and does without
    assert _third_party("import groundplane; groundplane.App") <= {"msgspec"} | optional_of_msgspec


@pytest.mark.req("CORE-04.1")
def test_importing_groundplane_makes_few_python_calls() -> None:
    """A gate that does not depend on the machine's speed: about 100 ms are some 200,000 calls."""
    calls = _ask(_CALLS)
    assert isinstance(calls, int)
    assert calls < 40_000


def test_every_public_name_is_there_and_listed() -> None:
    import groundplane

    assert groundplane.__all__
    assert [name for name in groundplane.__all__ if getattr(groundplane, name, None) is None] == []
    assert set(groundplane.__all__) <= set(dir(groundplane))
