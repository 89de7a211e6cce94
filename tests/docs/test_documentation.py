"""The documentation is true: its code runs, its commands exist, its indexes are complete."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(p for p in (ROOT / "docs").rglob("*.md") if "generated" not in p.parts and p.name != "requirements.md"),
    ]
)


def _blocks(page: Path, *languages: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [code for language, code in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S) if language in languages]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _declaring() -> list[object]:
    return [
        pytest.param(code, id=f"{_name(page)}-{number}")
        for page in PAGES
        for number, code in enumerate(_blocks(page, "python"))
        if "App(" in code
    ]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_python_in_the_documentation_is_python(page: Path) -> None:
    for code in _blocks(page, "python"):
        compile(code, str(page), "exec")


@pytest.mark.parametrize("code", _declaring())
def test_apps_in_the_documentation_can_be_declared(code: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(code, encoding="utf-8")
    program = "import app, groundplane; assert isinstance(app.app, groundplane.App)"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


GROUPS = {"jobs", "dead", "config", "db", "deploy", "services"}


def _commands() -> list[str]:
    """The command words of every `groundplane …` in shell blocks and inline code, without arguments and options."""
    found = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shell = "\n".join(_blocks(page, "bash", "console", "sh"))
        for line in [*shell.splitlines(), *re.findall(r"`(groundplane [^`]*)`", text)]:
            match = re.match(r"(?:\$ )?groundplane((?: [a-z]+)*)", line.strip())
            if match and match[1]:
                words = match[1].split()
                found.add(" ".join(words[: 2 if words[0] in GROUPS else 1]))
    return sorted(found)


@pytest.mark.parametrize("command", _commands())
@pytest.mark.req("CORE-05.1")
def test_commands_in_the_documentation_exist_and_explain_themselves(command: str) -> None:
    words = command.split()
    run = subprocess.run(
        [str(Path(sys.executable).parent / "groundplane"), *words, "--help"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert words[-1] in run.stdout


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs/adr/index.md").read_text(encoding="utf-8")
    records = sorted(p.name for p in (ROOT / "docs/adr").glob("[0-9]*.md"))
    assert records
    assert re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", index.split("-->")[1]) == records


def test_no_number_of_a_decision_is_used_twice() -> None:
    numbers = [p.name[:4] for p in (ROOT / "docs/adr").glob("[0-9]*.md")]
    assert len(numbers) == len(set(numbers))


def test_every_decision_has_context_decision_and_consequences() -> None:
    for record in (ROOT / "docs/adr").glob("[0-9]*.md"):
        headings = re.findall(r"^#+ (.*)$", record.read_text(encoding="utf-8"), re.M)
        assert {"Context", "Decision", "Consequences"} <= set(headings), record.name


def test_the_glossary_is_in_alphabetical_order() -> None:
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^([^\n:#][^\n]*)\n:   ", text, re.M)
    assert len(words) > 20
    assert words == sorted(words, key=lambda word: unicodedata.normalize("NFKD", word).casefold())


def test_the_changelog_names_the_version_of_the_package() -> None:
    from groundplane._version import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_exactly_once_is_never_promised() -> None:
    for page in PAGES:
        for line in re.findall(r"[^.\n]*exactly once[^.\n]*", page.read_text(encoding="utf-8"), re.I):
            assert re.search(r"\b(not|never|do not say|no)\b", line, re.I), f"{_name(page)}: {line}"


def test_every_requirement_is_complete() -> None:
    listed = tomllib.loads((ROOT / "docs/requirements.toml").read_text(encoding="utf-8"))
    assert len(listed) >= 247
    for name, one in listed.items():
        assert re.fullmatch(r"[A-Z]+-\d{2}", name)
        assert one["applies"] in ("now", "later"), name
        assert one["source"], name
        assert one["origin"], name
        assert all(text.strip() for text in one["clauses"]), name


def test_no_tracked_text_names_a_machine() -> None:
    """Nothing of the places where this was written belongs into the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    found = []
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if not path.is_file() or name == "uv.lock" or path.suffix in (".png", ".db", ".bin"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if re.search(r"/(work|home|root)/[a-z]+/", text) and name != _name(Path(__file__)):
            found.append(name)
    assert found == []
