"""The tables to other vocabularies."""

from __future__ import annotations

import pytest

from groundplane.jobs import words
from groundplane.jobs.port import JobState

_ASYA = {"Pending", "Running", "Succeeded", "Failed", "Unknown"}
_MCP = {"working", "input_required", "completed", "failed", "cancelled"}
_AGENT = {"pending", "starting", "running", "completing", "completed", "failed", "timeout", "dead", "cancelled"}


@pytest.mark.req("JOB-11.1")
@pytest.mark.parametrize("state", JobState)
def test_every_state_has_a_word_in_every_vocabulary(state: JobState) -> None:
    assert words.ASYA[state] in _ASYA
    assert words.MCP_TASK[state] in _MCP
    assert words.AGENT[state] in _AGENT


@pytest.mark.req("JOB-11.1")
@pytest.mark.parametrize("state", JobState)
def test_an_end_is_an_end_in_every_vocabulary_and_success_is_success(state: JobState) -> None:
    assert (words.ASYA[state] in {"Succeeded", "Failed"}) is state.terminal
    assert (words.MCP_TASK[state] in {"completed", "failed", "cancelled"}) is state.terminal
    assert (words.AGENT[state] in {"completed", "failed", "cancelled", "timeout"}) is state.terminal
    success = state is JobState.SUCCEEDED
    assert (words.ASYA[state] == "Succeeded") is success
    assert (words.MCP_TASK[state] == "completed") is success
    assert (words.AGENT[state] == "completed") is success


@pytest.mark.req("JOB-11.1")
def test_the_documented_table_is_the_one_in_use() -> None:
    rows = [line.strip("|").split("|") for line in (words.__doc__ or "").splitlines() if line.startswith("| ")][1:]
    documented = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert documented == {
        state.value: [words.ASYA[state], words.MCP_TASK[state], words.AGENT[state]] for state in JobState
    }
    assert words.ASYA_UNKNOWN == "Unknown"
