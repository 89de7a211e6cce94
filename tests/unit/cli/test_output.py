"""What commands print of others steers no terminal, and goes nowhere quietly where nobody listens."""

from __future__ import annotations

import sys

import pytest

from groundplane.cli.output import Output, show_error
from groundplane.core.errors import FailedPrecondition, Internal

_FOREIGN = "no \x1b[31mred\x1b]0;title\x07\r such\x9b2J\tthing\nat all"
_SHOWN = "no \ufffd[31mred\ufffd]0;title\ufffd\ufffd such\ufffd2J\tthing\nat all"


def test_texts_of_others_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(Internal(_FOREIGN), json=False)
    Output().note(_FOREIGN)
    Output().table([{"text": _FOREIGN}], ["text"], empty="none")
    shown = capsys.readouterr()
    assert shown.err == f"error [internal] {_SHOWN}\n{_SHOWN}\n"
    assert shown.out.splitlines()[1] == " ".join(_SHOWN.replace("\ufffd\ufffd such", "\ufffd such").split())


def test_a_standard_output_that_is_closed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    for write in (lambda: Output().result(1), lambda: Output().data(b"1")):
        with pytest.raises(FailedPrecondition, match=r"^output: "):
            write()
