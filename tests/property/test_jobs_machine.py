"""One job against a model of it: whatever is reported in whatever order, repeated and late reports included."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from groundplane.core.errors import ErrorRecord, FailedPrecondition
from groundplane.jobs import Job, Jobs, JobState
from groundplane.jobs.checks import FINAL_KINDS
from groundplane.jobs.conformance.subjects import message, new_job, report
from groundplane.jobs.port import Answer, Ask, Change, Finish, Joined, Outcome, Question, Split

_ERROR = ErrorRecord("internal", "broken", "processing_error")


class _Branch:
    """A branch of the model: a leaf until it is split; `put` replaces it by a join in its parent's list."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "live"
        self.result: Any = None
        self.children: list[_Branch] = []
        self.heard = False

    def all(self) -> list[_Branch]:
        return [self, *(one for child in self.children for one in child.all())]

    def results(self) -> Any:
        return [child.results() for child in self.children] if self.state == "split" else self.result


class JobMachine(RuleBasedStateMachine):
    """Rules are the changes that a mesh makes; each is also tried on branches that are not what they were."""

    url = "embedded://"

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.jobs: Jobs = self.run(self.stack.enter_async_context(Jobs.open(self.url, state=folder, inline=True)))
        self.root = _Branch("root")
        self.known = [self.root]
        self.lost_for_good = False
        self.state = JobState.PENDING
        self.progress = 0.0
        self.made = 0
        self.questions: dict[str, Any] = {}  # the answer of each, None while there is none
        self.by_hand = False

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    def apply(self, change: Change) -> Outcome:
        (outcome,) = self.run(self.jobs.apply(change))
        return outcome  # type: ignore[no-any-return]

    def pick(self, number: int) -> _Branch:
        return self.known[number % len(self.known)]

    def in_tree(self, branch: _Branch) -> bool:
        return branch in self.root.all()

    @property
    def has_tree(self) -> bool:
        return len(self.known) > 1

    def settle(self) -> None:
        """The job has ended when no branch of the model is live."""
        tree = self.root.all()
        if any(one.state == "live" for one in tree):
            return
        self.by_hand = False
        failed = self.lost_for_good or any(one.state in ("failed", "held") for one in tree)
        self.state = JobState.FAILED if failed else JobState.SUCCEEDED

    @property
    def asked(self) -> list[str]:
        """The questions that wait for an answer."""
        return [] if self.state.terminal else [one for one, answer in self.questions.items() if answer is None]

    @initialize()
    def create(self) -> None:
        self.job_id = self.run(self.jobs.create(new_job())).job.job_id

    @rule(number=st.integers(0, 99), hop=st.integers(0, 1), weight=st.sampled_from([10, 50, 80, 100]))
    def progress_of_a_branch(self, number: int, hop: int, weight: float) -> None:
        branch = self.pick(number)
        outcome = self.apply(report(self.job_id, hop, weight, envelope_id=branch.name))
        live = self.in_tree(branch) and branch.state == "live" and not self.state.terminal
        assert outcome.applied is live
        branch.heard |= live
        if live and self.state is JobState.PENDING:
            self.state = JobState.RUNNING

    @rule(number=st.integers(0, 99), total=st.integers(1, 3), repeat=st.booleans())
    def split(self, number: int, total: int, repeat: bool) -> None:
        branch = self.pick(number)
        if branch.state == "split" and not repeat:
            return  # other children than before: the suite has it
        names = [child.name for child in branch.children] or [f"{branch.name}.{self.made}.{n}" for n in range(total)]
        self.made += 1
        outcome = self.apply(Split(job_id=self.job_id, envelope_id=branch.name, children=names))
        live = self.in_tree(branch) and branch.state == "live" and not self.state.terminal
        assert outcome.applied is live
        if live:
            branch.state = "split"
            branch.children = [_Branch(name) for name in names]
            self.known += branch.children
            self.state = JobState.PAUSED if self.state is JobState.PAUSED else JobState.RUNNING

    @rule(number=st.integers(0, 99))
    def join(self, number: int) -> None:
        branch = self.pick(number)
        self.made += 1
        joined = _Branch(f"join-{self.made}")
        joined.heard = True  # that those below it were sent
        outcome = self.apply(Joined(job_id=self.job_id, parent_id=branch.name, envelope_id=joined.name))
        split = self.in_tree(branch) and branch.state == "split" and not self.state.terminal
        assert outcome.applied is split
        if not split:
            return
        self.lost_for_good |= any(one.state == "failed" for one in branch.all())
        self.known.append(joined)
        for one in branch.all():
            one.state = "joined" if one.state != "failed" else one.state
        if branch is self.root:
            self.root = joined
            return
        for one in self.root.all():
            one.children = [joined if child is branch else child for child in one.children]

    @rule(number=st.integers(0, 99), outcome=st.sampled_from(["done", "done", "aborted", "failed", "held"]))
    def finish(self, number: int, outcome: str) -> None:
        branch = self.pick(number)
        failed = outcome in ("failed", "held")
        told = self.apply(
            Finish(
                job_id=self.job_id,
                envelope_id=branch.name,
                result=None if failed else branch.name,
                error=_ERROR if failed else None,
                aborted=outcome == "aborted",
                holds=outcome == "held",
            )
        )
        unheard = not any(child.heard or child.state != "live" for child in branch.children)
        if branch.state == "split" and unheard and self.in_tree(branch) and not self.state.terminal:
            branch.state, branch.children = "live", []
        live = self.in_tree(branch) and branch.state == "live" and not self.state.terminal
        assert told.applied is live
        if live:
            branch.state = outcome if failed else "done"
            branch.result = None if failed else branch.name
            self.settle()
            assert told.state is self.state

    @rule(action=st.sampled_from(["pause", "resume", "cancel", "resume", "pause"]), sure=st.integers(0, 3))
    def control(self, action: str, sure: int) -> None:
        if action == "cancel" and sure:
            return  # now and then is enough: a job that ended has few stories left
        allowed = {
            "pause": self.state in (JobState.PENDING, JobState.RUNNING) or (bool(self.asked) and not self.by_hand),
            "resume": self.state is JobState.PAUSED and not self.asked,
            "cancel": not self.state.terminal,
        }[action]
        try:
            job = self.run(getattr(self.jobs, action)(self.job_id))
        except FailedPrecondition:
            assert not allowed
            return
        assert allowed
        self.state = job.state
        self.by_hand = action == "pause"
        assert (
            job.state is {"pause": JobState.PAUSED, "resume": self.resumed(job), "cancel": JobState.CANCELLED}[action]
        )

    def resumed(self, job: Job) -> JobState:
        """What a job that goes on is again."""
        return JobState.RUNNING if self.has_tree or job.progress > 0 or job.actor else JobState.PENDING

    @rule(number=st.integers(0, 99), ids=st.lists(st.integers(0, 5), min_size=1, max_size=2, unique=True))
    def ask(self, number: int, ids: list[int]) -> None:
        branch = self.pick(number)
        asked = [Question(question_id=f"q{n}", envelope_id=branch.name) for n in ids]
        outcome = self.apply(Ask(job_id=self.job_id, questions=asked, message=message(branch.name)))
        live = not self.state.terminal and (not self.has_tree or (self.in_tree(branch) and branch.state == "live"))
        fresh = [one.question_id for one in asked if one.question_id not in self.questions]
        assert outcome.applied is live or (live and not fresh and outcome.detail == "repeated")
        if live and fresh:
            self.questions |= dict.fromkeys(fresh)
            self.state = JobState.PAUSED
        assert outcome.state is self.state

    @rule(number=st.integers(0, 6), content=st.integers(0, 1))
    def answer(self, number: int, content: int) -> None:
        question_id = f"q{number}"
        outcome = self.apply(Answer(job_id=self.job_id, question_id=question_id, content=content))
        repeated = self.questions.get(question_id) == content
        assert outcome.applied is (question_id in self.asked)
        if not outcome.applied:
            refused = "question_answered" if question_id in self.questions else "question_not_found"
            assert outcome.detail == ("repeated" if repeated else "job_terminal" if self.state.terminal else refused)
            return
        self.questions[question_id] = content
        if not self.asked and not self.by_hand:
            self.state = self.resumed(self.run(self.jobs.get(self.job_id)))
        assert outcome.state is self.state

    @invariant()
    def the_record_is_what_the_model_says(self) -> None:
        if not hasattr(self, "job_id"):
            return
        job = self.run(self.jobs.get(self.job_id))
        assert job.state is self.state
        assert [one.question_id for one in job.questions] == self.asked
        assert (job.state is JobState.PAUSED) is (bool(self.asked) or self.by_hand)
        assert job.progress >= self.progress
        assert (job.progress == 100) is (job.state is JobState.SUCCEEDED)
        assert 0 <= job.steps_completed <= job.total_steps
        self.progress = job.progress
        if job.state is JobState.SUCCEEDED:
            assert job.result == self.root.results()
        if job.state is JobState.FAILED and self.root.state == "split":
            assert job.error.details["results"] == self.root.results()

    @invariant()
    def the_log_tells_the_same_story(self) -> None:
        if not hasattr(self, "job_id"):
            return
        events = self.run(self.jobs.events(0, self.job_id, 1000)).items
        finals = [event for event in events if event.kind in FINAL_KINDS]
        assert [event.kind for event in finals] == ([self.state.value] if self.state.terminal else [])
        told = [event.data["progress"] for event in events if "progress" in event.data]
        assert told == sorted(told)
        if finals:
            assert {event.kind for event in events if event.id > finals[0].id} <= {"late"}
            assert len([event for event in events if event.kind == "late"]) <= len(self.known)

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()


JobMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.req("JOB-01.1", "JOB-01.2", "JOB-05.3", "JOB-12.1", "JOB-12.2", "GATE-16.1")
class TestJobMachine(JobMachine.TestCase):  # type: ignore[name-defined,misc]
    pass


class PostgresJobMachine(JobMachine):
    """The same story in PostgreSQL; `url` is that of the test."""


PostgresJobMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)


@pytest.mark.req("JOB-01.1", "JOB-01.2", "JOB-05.3", "JOB-12.1", "JOB-12.2", "GATE-16.1")
class TestPostgresJobMachine(PostgresJobMachine.TestCase):  # type: ignore[name-defined,misc]
    @pytest.fixture(autouse=True)
    def store(self, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PostgresJobMachine, "url", postgres_url)
