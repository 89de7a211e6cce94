"""`--baseline` of the benchmarks: ratios to the peers are compared, and a loss past the stated one is exit code 1."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3]))  # the benchmarks are beside the tests, not in the package

from benchmarks import report
from benchmarks.__main__ import main


def row(subject: str, value: float, **more: object) -> report.Row:
    return report.Row(section="s", subject=subject, metric="m", value=value, unit="/s", **more)  # type: ignore[arg-type]


@pytest.mark.req("KIT-14.1")
def test_a_lost_ratio_is_found_in_either_sense_of_better() -> None:
    before = [row("ours", 100), row("raw", 100, peer=True)]
    assert report.losses([row("ours", 50), row("raw", 50, peer=True)], before, 0.1) == ([], 1)
    (lost,), _ = report.losses([row("ours", 80), row("raw", 100, peer=True)], before, 0.1)
    assert (lost.before, lost.now, lost.share) == pytest.approx((1.0, 0.8, 0.2))
    slow = [row("ours", 10, better="lower"), row("raw", 10, peer=True, better="lower")]
    slower = [row("ours", 15, better="lower"), row("raw", 10, peer=True, better="lower")]
    assert len(report.losses(slower, slow, 0.1)[0]) == 1
    assert report.losses(slow, slower, 0.1)[0] == []
    assert report.losses([row("ours", 1)], before, 0.1) == ([], 0)


@pytest.mark.req("KIT-14.1")
@pytest.mark.parametrize(
    ("baseline", "arguments", "code"),
    [
        (1.0, [], 1),
        (1.0, ["--loss", "60%"], 0),
        (0.5, ["--loss", "0.01"], 0),
    ],
)
def test_the_run_exits_1_past_the_stated_loss(
    baseline: float, arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path
    report.write([row("ours", 100 * baseline), row("raw", 100, peer=True)], folder / "then")
    monkeypatch.setattr("benchmarks.weight.rows", lambda *_: [row("ours", 5), row("raw", 10, peer=True)])
    given = ["weight", "--out", str(folder / "now"), "--baseline", str(folder / "then" / "latest.json"), *arguments]
    assert main(given) == code


@pytest.mark.req("KIT-14.1")
@pytest.mark.parametrize("text", ["[{}]", "no json", None])
def test_a_file_that_is_no_baseline_is_refused_before_anything_is_measured(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "baseline.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit) as caught:
        main(["weight", "--baseline", str(file)])
    assert caught.value.code == 2
    assert "baseline: " in capsys.readouterr().err
