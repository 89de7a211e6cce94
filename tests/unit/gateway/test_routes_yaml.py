"""routes.yaml: what is read, and every mistake with file and line."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.gateway.routes_yaml import load_tools

pytestmark = pytest.mark.req("GATE-01")

WHOLE = """\
defaults:
  progress: false
  timeout: 60
routes:
  classify: [reader, classifier]
tools:
  - name: classify-mail
    description: Says what a mail is about.
    parameters:
      text: {type: string, required: true, description: The mail.}
      mode: {type: string, options: [fast, deep], default: fast}
      limit: {type: integer, default: 3}
      tags: {type: array, items: {type: string}}
      filter:
        type: object
        properties:
          since: {type: number, required: true}
    route: classify
    metadata: {team: mail, level: 2}
  - name: echo
    route: [echo]
    progress: true
    timeout: 1m30s
    on_disconnect: cancel
"""


def write(folder: Path, text: str, name: str = "routes.yaml") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def test_everything_that_may_stand_in_a_file_is_read(tmp_path: Path) -> None:
    mail, echo = load_tools(write(tmp_path, WHOLE))
    assert mail.name == "classify-mail"
    assert mail.description == "Says what a mail is about."
    assert mail.route == ["reader", "classifier"]
    assert mail.metadata == {"team": "mail", "level": 2}
    assert mail.origin == f"{tmp_path / 'routes.yaml'}:7"
    assert mail.input_schema == {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "The mail."},
            "mode": {"type": "string", "enum": ["fast", "deep"], "default": "fast"},
            "limit": {"type": "integer", "default": 3},
            "tags": {"type": "array", "items": {"type": "string"}},
            "filter": {
                "type": "object",
                "properties": {"since": {"type": "number"}},
                "required": ["since"],
                "additionalProperties": False,
            },
        },
        "required": ["text"],
        "additionalProperties": False,
    }
    assert echo.route == ["echo"]
    assert echo.on_disconnect == "cancel"


def test_the_defaults_of_the_file_hold_for_tools_that_say_nothing(tmp_path: Path) -> None:
    mail, echo = load_tools(write(tmp_path, WHOLE))
    assert (mail.progress, mail.timeout_s) == (False, 60.0)
    assert (echo.progress, echo.timeout_s) == (True, 90.0)


def test_a_folder_is_merged_templates_are_shared_and_defaults_are_not(tmp_path: Path) -> None:
    write(tmp_path, "routes: {both: [one, two]}\ndefaults: {timeout: 5}\ntools: [{name: a, route: both}]", "a.yaml")
    write(tmp_path, "tools: [{name: b, route: both}]", "b.yml")
    write(tmp_path, "not: [read", "c.txt")
    first, second = load_tools(tmp_path)
    assert (first.name, first.route, first.timeout_s) == ("a", ["one", "two"], 5.0)
    assert (second.name, second.route, second.timeout_s) == ("b", ["one", "two"], 300.0)


# text, line of the first problem, what its message says
MISTAKES = {
    "unknown key of the file": ("toolz: []\n", 1, "toolz: is an unknown key; did you mean 'tools'?"),
    "unknown key of a tool": (
        "tools:\n  - name: a\n    rout: [x]\n    route: [x]\n",
        3,
        "tools[0].rout: is an unknown key; did you mean 'route'?",
    ),
    "unknown key of a parameter": (
        "tools:\n  - name: a\n    route: [x]\n    parameters:\n      p: {type: string, requird: true}\n",
        5,
        "tools[0].parameters.p.requird: is an unknown key; did you mean 'required'?",
    ),
    "unknown key of the defaults": (
        "defaults: {timeot: 3}\ntools: [{name: a, route: [x]}]\n",
        1,
        "defaults.timeot: is an unknown key; did you mean 'timeout'?",
    ),
    "empty tools": ("tools: []\n", 1, "tools: is empty; list at least one tool"),
    "no tools": ("routes: {a: [x]}\n", 1, "tools: is missing; list tools"),
    "tools is no list": ("tools: {name: a}\n", 1, "tools: {'name': 'a'} is not a list of tools"),
    "empty file": ("", 1, "is empty; list tools"),
    "file is a list": ("- a\n", 1, "is not a mapping"),
    "empty route": (
        "tools:\n  - name: a\n    route: []\n",
        3,
        "tools[0].route: is empty; list at least one actor",
    ),
    "no route": ("tools:\n  - name: a\n", 2, "tools[0]: has no route; name a template or list actors"),
    "no name": ("tools:\n  - route: [x]\n", 2, "tools[0]: has no name"),
    "bad name": ("tools:\n  - name: a b\n    route: [x]\n", 2, "tools[0].name: 'a b' is not a name"),
    "name is a number": ("tools:\n  - name: 7\n    route: [x]\n", 2, "tools[0].name: 7 is not a name"),
    "empty template": ("routes:\n  t: []\ntools: [{name: a, route: t}]\n", 2, "routes.t: is empty"),
    "unknown template": (
        "routes:\n  classify: [x]\ntools:\n  - name: a\n    route: clasify\n",
        5,
        "tools[0].route: 'clasify' is not a template of 'routes'; did you mean 'classify'?",
    ),
    "duplicate tool": (
        "tools:\n  - {name: a, route: [x]}\n  - {name: a, route: [y]}\n",
        3,
        "tools[1].name: 'a' is there already, at ",
    ),
    "duplicate template": (
        "routes:\n  t: [x]\n  t: [y]\ntools: [{name: a, route: t}]\n",
        3,
        "routes.t: is there twice, first on line 2; keep one",
    ),
    "duplicate key of a tool": (
        "tools:\n  - name: a\n    route: [x]\n    name: b\n",
        4,
        "tools[0].name: is there twice, first on line 2",
    ),
    "negative timeout": (
        "tools:\n  - name: a\n    route: [x]\n    timeout: -5\n",
        4,
        "tools[0].timeout: -5 is not a positive duration",
    ),
    "zero timeout": ("tools: [{name: a, route: [x], timeout: 0}]\n", 1, "tools[0].timeout: 0 is not a positive"),
    "timeout is a flag": ("tools: [{name: a, route: [x], timeout: true}]\n", 1, "True is not a duration"),
    "timeout is text": ("tools: [{name: a, route: [x], timeout: soon}]\n", 1, "'soon' is not a positive duration"),
    "negative default timeout": (
        "defaults:\n  timeout: -1\ntools: [{name: a, route: [x]}]\n",
        2,
        "defaults.timeout: -1 is not a positive duration",
    ),
    "timeout is infinite": ("tools: [{name: a, route: [x], timeout: .inf}]\n", 1, "'.inf' is not a finite number"),
    "progress is text": ("tools: [{name: a, route: [x], progress: 'x'}]\n", 1, "'x' is not true or false"),
    "on_disconnect": (
        "tools: [{name: a, route: [x], on_disconnect: cancle}]\n",
        1,
        "'cancle' is not 'cancel' or 'detach'; did you mean 'cancel'?",
    ),
    "no type": (
        "tools:\n  - name: a\n    route: [x]\n    parameters:\n      p: {}\n",
        5,
        "tools[0].parameters.p: has no type; use one of string,",
    ),
    "unknown type": (
        "tools:\n  - name: a\n    route: [x]\n    parameters:\n      p: {type: strin}\n",
        5,
        "tools[0].parameters.p.type: 'strin' is not a type; did you mean 'string'?",
    ),
    "default of another type": (
        "tools:\n  - name: a\n    route: [x]\n    parameters:\n      p: {type: integer, default: many}\n",
        5,
        "tools[0].parameters.p.default: 'many' does not fit the type 'integer'",
    ),
    "default not among the options": (
        "tools:\n  - name: a\n    route: [x]\n    parameters:\n      p: {type: string, options: [a, b], default: c}\n",
        5,
        "tools[0].parameters.p.default: 'c' is not among the options ['a', 'b']",
    ),
    "option of another type": (
        "tools:\n  - name: a\n    route: [x]\n    parameters:\n      p: {type: integer, options: [1, two]}\n",
        5,
        "tools[0].parameters.p.options[1]: 'two' is not of the type 'integer'",
    ),
    "option twice": ("tools: [{name: a, route: [x], parameters: {p: {type: integer, options: [1, 1]}}}]", 1, "twice"),
    "no options": ("tools: [{name: a, route: [x], parameters: {p: {type: integer, options: []}}}]", 1, "[] is not a"),
    "required and default": (
        "tools: [{name: a, route: [x], parameters: {p: {type: integer, required: true, default: 1}}}]",
        1,
        "true contradicts the default",
    ),
    "required is text": (
        "tools: [{name: a, route: [x], parameters: {p: {type: integer, required: always}}}]",
        1,
        "'always' is not true or false",
    ),
    "items of no array": (
        "tools: [{name: a, route: [x], parameters: {p: {type: string, items: {type: string}}}}]",
        1,
        "items: goes with the type 'array' alone",
    ),
    "properties of no object": (
        "tools: [{name: a, route: [x], parameters: {p: {type: array, properties: {}}}}]",
        1,
        "properties: goes with the type 'object' alone",
    ),
    "description is a number": ("tools: [{name: a, route: [x], description: 3}]", 1, "3 is not text"),
    "metadata is a list": ("tools: [{name: a, route: [x], metadata: [1]}]", 1, "[1] is not a mapping"),
    "not YAML": ("tools:\n  - name: 'a\n", 3, "is not YAML"),
    "a scalar tag": ("tools: [{name: !secret a, route: [x]}]\n", 1, "has the tag '!secret'"),
    "a key that is no text": ("? [a]\n: 1\n", 1, "has a key that is not text"),
    "not UTF-8": (b"tools:\n  - name: \xff\n", 2, "is not UTF-8"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_with_file_and_line(tmp_path: Path, mistake: str) -> None:
    text, line, message = MISTAKES[mistake]
    path = tmp_path / "routes.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidArgument) as caught:
        load_tools(path)
    first = caught.value.message.splitlines()[0]
    assert first.startswith(f"{path}:{line}: "), caught.value.message
    assert message in caught.value.message
    assert caught.value.details["problems"][0]["line"] == line


def test_all_mistakes_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "tools:\n  - {name: a, route: []}\n  - {name: b}\n", "a.yaml")
    write(tmp_path, "tools: []\n", "b.yaml")
    with pytest.raises(InvalidArgument) as caught:
        load_tools(tmp_path)
    places = [(Path(one["file"]).name, one["line"]) for one in caught.value.details["problems"]]
    assert places == [("a.yaml", 2), ("a.yaml", 3), ("b.yaml", 1)]


def test_a_name_may_not_be_in_two_files_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "routes: {t: [x]}\ntools: [{name: a, route: t}]", "a.yaml")
    write(tmp_path, "routes: {t: [y]}\ntools: [{name: a, route: t}]", "b.yaml")
    with pytest.raises(InvalidArgument) as caught:
        load_tools(tmp_path)
    assert [one["field"] for one in caught.value.details["problems"]] == ["routes.t", "tools[0].name"]
    assert all(Path(one["file"]).name == "b.yaml" for one in caught.value.details["problems"])
    assert "a.yaml:1" in caught.value.message


def test_aliases_cannot_make_a_document_grow_without_bound(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(InvalidArgument, match="is too large"):
        load_tools(write(tmp_path, "\n".join(lines)))


def test_a_missing_file_and_an_empty_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot be read"):
        load_tools(tmp_path / "none.yaml")
    with pytest.raises(InvalidArgument, match=r"has no \*\.yaml files"):
        load_tools(tmp_path)
