"""Log lines: levels by name, ids of what a task is about, one line whatever a value holds."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.core.lifecycle import Lifecycle
from groundplane.mesh.batching import Batcher
from groundplane.telemetry import logs
from groundplane.telemetry.logs import about, also_about, configure, get_logger, level_from

pytestmark = pytest.mark.anyio

WORDS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    out = io.StringIO()
    configure("INFO", form="json", stream=out)
    yield out
    configure("INFO")


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.req("TEL-06.3")
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("variable", ["GROUNDPLANE_LOG_LEVEL", "LOG_LEVEL"])
def test_each_level_lets_through_what_is_at_least_as_bad(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, variable: str, word: str
) -> None:
    for name in ("GROUNDPLANE_LOG_LEVEL", "LOG_LEVEL", "ASYA_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, word.lower())
    configure(form="json", stream=stream)
    log = get_logger("t")
    for level in WORDS:
        getattr(log, level.lower())("said")
    assert [line["level"] for line in _lines(stream)] == list(WORDS[WORDS.index(word) :])


@pytest.mark.req("TEL-06.3")
def test_the_own_variable_goes_before_the_customary_one_and_the_default_is_info() -> None:
    assert level_from({"GROUNDPLANE_LOG_LEVEL": "ERROR", "LOG_LEVEL": "DEBUG"}) == "ERROR"
    assert level_from({"GROUNDPLANE_LOG_LEVEL": "", "LOG_LEVEL": "DEBUG"}) == "DEBUG"
    assert level_from({}) == "INFO"


@pytest.mark.req("TEL-06.3")
def test_a_level_that_is_none_is_refused_with_the_five_that_are() -> None:
    with pytest.raises(InvalidArgument, match="'LOUD' is not one of DEBUG, INFO, WARNING, ERROR, CRITICAL"):
        configure("loud")


@pytest.mark.req("TEL-06.1")
def test_a_line_has_the_ids_of_what_its_task_is_about(stream: io.StringIO) -> None:
    log = get_logger("t", actor="double")
    with about(trace_id="t1", job_id=None):
        log.info("first")
        also_about(job_id="j1")
        log.info("second", job_id="j2")
    log.info("third")
    said = [{key: line.get(key) for key in ("event", "actor", "trace_id", "job_id")} for line in _lines(stream)]
    assert said == [
        {"event": "first", "actor": "double", "trace_id": "t1", "job_id": None},
        {"event": "second", "actor": "double", "trace_id": "t1", "job_id": "j2"},
        {"event": "third", "actor": "double", "trace_id": None, "job_id": None},
    ]


@pytest.mark.req("TEL-06.1")
async def test_tasks_that_run_beside_each_other_do_not_share_ids(stream: io.StringIO) -> None:
    async def work(number: int) -> None:
        with about(trace_id=f"t{number}"):
            await asyncio.sleep(0)
            get_logger("t").info("said", number=number)

    await asyncio.gather(*map(work, range(5)))
    assert [line["trace_id"] for line in _lines(stream)] == [f"t{line['number']}" for line in _lines(stream)]


@pytest.mark.req("TEL-06.1")
async def test_what_is_done_for_many_is_about_none_of_them(stream: io.StringIO) -> None:
    async def flush(items: list[int]) -> list[int]:
        get_logger("t").info("flushed")
        return items

    async def look() -> None:
        get_logger("t").info("looked")

    batches: Batcher[int, int] = Batcher(flush)
    lifecycle = Lifecycle("thing")
    with about(trace_id="t1"):
        await batches.submit(1)
        await lifecycle.spawn(look(), name="look")
    await lifecycle.aclose()
    assert [line["event"] for line in _lines(stream)] == ["flushed", "looked"]
    assert not any("trace_id" in line for line in _lines(stream))


@pytest.mark.req("TEL-06.1")
def test_an_event_is_one_line_whatever_it_holds(stream: io.StringIO) -> None:
    get_logger("t").error("said", traceback="one\ntwo", value=object(), level_of_detail=1)
    (line,) = _lines(stream)
    assert line["traceback"] == "one\ntwo"
    assert set(line) == {"time", "level", "logger", "event", "traceback", "value", "level_of_detail"}
    assert logs.LEVELS[line["level"]] == 40
