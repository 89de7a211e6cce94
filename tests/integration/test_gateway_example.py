"""`examples/routes_yaml` does what its README says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.gateway import ToolTable
from integration import dev_plane

pytestmark = pytest.mark.integration


@pytest.fixture
def example(tmp_path: Path, repository: Path) -> Path:
    return Path(shutil.copytree(repository / "examples" / "routes_yaml", tmp_path / "example"))


def commands(readme: str) -> list[str]:
    return re.findall(r"^groundplane call (.+)$", readme, re.M)


@pytest.mark.req("GATE-01", "MESH-21")
def test_the_example_runs_as_its_readme_says(example: Path) -> None:
    readme = (example / "README.md").read_text()
    good, bad = commands(readme)
    with dev_plane.serving("dev", "app:app", "--port", "0", "--state", "state", "--json", folder=example):
        words = _words(good)
        done = dev_plane.groundplane("call", *words, "--state", "state", "--json", folder=example)
        assert done.returncode == 0, done.stderr
        expected = json.loads(re.findall(r"^\{.+\}$", readme, re.M)[0])
        assert json.loads(done.stdout)["result"] == expected
        refused = dev_plane.groundplane("call", *_words(bad), "--state", "state", folder=example)
        assert refused.returncode != 0
        assert "arguments.langauge: 'en' is unknown to tool 'word-count'; did you mean 'language'?" in " ".join(
            refused.stderr.split()
        )


def _words(line: str) -> list[str]:
    """The words of a command line, with quotes around values taken off."""
    return [word.replace('"', "") for word in re.findall(r'(?:[^\s"]|"[^"]*")+', line)]


@pytest.mark.req("GATE-01")
def test_the_mistake_of_the_readme_is_told_as_it_says(example: Path) -> None:
    path = example / "routes.yaml"
    lines = path.read_text().splitlines()
    line = next(n for n, text in enumerate(lines, 1) if "route: words" in text)
    path.write_text(path.read_text().replace("route: words", "route: wrods"))
    with pytest.raises(InvalidArgument) as caught:
        ToolTable(files=[path])
    assert caught.value.message == (
        f"{path}:{line}: tools[0].route: 'wrods' is not a template of 'routes'; did you mean 'words'?"
    )
    assert f"routes.yaml:{line}: " in (example / "README.md").read_text()
