"""What one call asks: answers that are there are returned, what is not answered ends the run.

A question's id is made of the actor, its place on the route, the key (or the number) that the handler gives it, and the
envelope where that is not the first of its job. So a run that comes again, for whatever reason, asks the same
questions, and each of them exists once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from groundplane.core.envelope import Envelope
from groundplane.core.errors import FailedPrecondition, InvalidArgument, NotFound, Unsupported
from groundplane.jobs.checks import ASKED_MAX, check_question
from groundplane.jobs.port import Question
from groundplane.mesh.reporting import Reporter
from groundplane.mesh.start import ENDED_JOB

_SAME = ("kind", "message", "schema", "params")


class Asking:
    """The questions of one call. `open` are those that it ended with: then its outcome counts for nothing."""

    def __init__(self, reporter: Reporter | None, envelope: Envelope, actor: str, token: str) -> None:
        self.open: list[Question] = []
        self._reporter = reporter
        self._envelope = envelope
        self._job_id = envelope.job_id or envelope.headers.get(ENDED_JOB)
        self._actor = actor
        self._token = token

    async def answers(self, asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The reply to a handler that asks: all answers, or that its run ends.

        Raises `unsupported` where nobody could be asked, `invalid_argument`, `failed_precondition` (`question_changed`
        where the same question was asked in other words before, `job_terminal` where nobody can answer any more),
        and `unavailable`.
        """
        questions = [self._question(one) for one in asked]
        if not 1 <= len(questions) <= ASKED_MAX:
            raise InvalidArgument(f"questions: {len(questions)} at once; ask 1 to {ASKED_MAX}")
        known = await self._known([one.question_id for one in questions])
        unanswered = []
        for question in questions:
            before = known.get(question.question_id)
            if before is not None:
                _check_same(before, question)
            if before is None or before.state != "answered":
                unanswered.append(question)
        if not unanswered:
            found = [known[one.question_id] for one in questions]
            return {"state": "answered", "answers": [{"action": one.action, "content": one.content} for one in found]}
        if self._envelope.job_id is None:
            raise FailedPrecondition("ask: the job has ended, nobody can answer any more", reason="job_terminal")
        asked_before = {one.question_id for one in self.open}
        self.open += [one for one in unanswered if one.question_id not in asked_before]
        return {"state": "suspended"}

    async def _known(self, ids: list[str]) -> dict[str, Question]:
        job_id = self._job_id
        if self._reporter is None:
            raise Unsupported("ask: this sidecar knows no jobs; give it --jobs")
        if not isinstance(job_id, str):
            raise Unsupported("ask: the envelope belongs to no job, so nobody could answer; start it as one")
        try:
            found = await self._reporter.questions(job_id, ids)
        except NotFound as error:
            message = f"ask: job {job_id!r} is not known any more"
            raise FailedPrecondition(message, reason="job_terminal") from error
        return {one.question_id: one for one in found}

    def _question(self, given: dict[str, Any]) -> Question:
        own = f"{self._actor}.{self._envelope.route.current}.{given.get('key')}"
        if self._envelope.id != self._job_id:
            own += "." + hashlib.sha256(self._envelope.id.encode()).hexdigest()[:16]
        fields = {"question_id": own, "actor": self._actor, "envelope_id": self._envelope.id}
        try:
            question = msgspec.convert({**{name: given.get(name) for name in _SAME}, **fields}, Question)
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"questions: {str(given)[:200]!r} is none: {error}") from error
        check_question(question)
        return question


def _check_same(before: Question, question: Question) -> None:
    """An answer is to the words that were read: what is asked in others is another question."""
    for name in _SAME:
        then, now = getattr(before, name), getattr(question, name)
        if then != now:
            raise FailedPrecondition(
                f"{name}: question {question.question_id!r} was asked with {str(then)[:200]!r} by a run before, and "
                f"now with {str(now)[:200]!r}; give each question a key, and take what changes from ctx.once",
                reason="question_changed",
            )


__all__ = ["Asking"]
