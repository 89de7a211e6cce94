"""What the façade refuses before a driver sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_args

import msgspec

from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.core.fencing import check_fence
from groundplane.jobs.port import (
    Answer,
    AnswerAction,
    Ask,
    Change,
    Control,
    Finish,
    JobQuery,
    JobState,
    NewJob,
    Note,
    OutboxMessage,
    Question,
    QuestionKind,
    Split,
)

OWNER_CHARS_MAX = 255
KEY_CHARS_MAX = 255
PAGE_MAX = 1000
CHANGES_MAX = 10_000
ACTIONS = ("cancel", "pause", "resume")
ASKED_MAX = 64
"""Questions that are asked at once."""
QUESTION_CHARS_MAX = 16 * 1024
QUESTION_BYTES_MAX = 256 * 1024
"""Of schema and parameters together."""
FINAL_KINDS = frozenset(state.value for state in JobState if state.terminal)
"""The kinds of the last event of a job."""
RESERVED_KINDS = FINAL_KINDS | {
    "created", "progress", "split", "joined", "branch", "paused", "resumed", "parked", "snapshot", "asked",
    "answered"
}  # fmt: skip
_KIND = re.compile(r"[a-z][a-z0-9_]{0,63}")


def check_job_id(job_id: str) -> None:
    """`not_found` for what no job can be called: no store needs to be asked."""
    if not 1 <= len(job_id) <= 255 or not _storable(job_id):
        raise NotFound(f"job_id: no job has the id {job_id[:300]!r}; look at the list of jobs", reason="job_not_found")


def check_page(after: int, limit: int) -> None:
    """`invalid_argument` names the field."""
    if not 0 <= after < 2**63:
        raise InvalidArgument(f"after: {after!r} is not the id of an event; take it from an event or a page")
    if not 0 <= limit <= PAGE_MAX:
        raise InvalidArgument(f"limit: {limit!r} must be 0 to {PAGE_MAX}")


def check_new_job(job: NewJob, messages: Sequence[OutboxMessage]) -> None:
    """`invalid_argument` names the field."""
    for field, value, least, most in (
        ("job_id", job.job_id, 1, 255),
        ("tool", job.tool, 1, 255),
        ("owner", job.owner, 0, OWNER_CHARS_MAX),
    ):
        if not least <= len(value) <= most or not _storable(value):
            raise InvalidArgument(f"{field}: {value!r} must have {least} to {most} printable characters")
    key = job.idempotency_key
    if key is not None and not (1 <= len(key) <= KEY_CHARS_MAX and _storable(key)):
        raise InvalidArgument(f"idempotency_key: {key!r} must have 1 to {KEY_CHARS_MAX} printable characters")
    if not job.route:
        raise InvalidArgument("route: [] is empty; name at least one actor", reason="route_error")
    if job.deadline_at is not None and not 0 < job.deadline_at < 2**53:
        raise InvalidArgument(f"deadline_at: {job.deadline_at!r} must be a time in Unix milliseconds")
    if job.live_max is not None and job.live_max < 1:
        raise InvalidArgument(f"live_max: {job.live_max!r} must be at least 1; None is no limit")
    if job.fence is not None:
        check_fence(job.fence)
    for message in messages:
        _check_message("messages", message)


def check_changes(changes: Sequence[Change]) -> None:
    """`invalid_argument` names the field of the first change that is none."""
    if len(changes) > CHANGES_MAX:
        raise InvalidArgument(f"changes: {len(changes)} are more than {CHANGES_MAX} in one call; split them")
    for change in changes:
        if isinstance(change, Control) and change.action not in ACTIONS:
            raise InvalidArgument(f"action: {change.action!r} must be one of {', '.join(ACTIONS)}")
        if isinstance(change, Note) and (change.kind in RESERVED_KINDS or not _KIND.fullmatch(change.kind)):
            raise InvalidArgument(f"kind: {change.kind!r} is reserved or no lower-case word; choose another")
        if isinstance(change, Split):
            _check_split(change)
        if isinstance(change, Ask):
            _check_ask(change)
        if isinstance(change, Answer):
            _check_answer(change)
        if isinstance(change, Finish) and change.error is not None and change.aborted:
            raise InvalidArgument("aborted: True is a success; leave out error")


def check_query(query: JobQuery) -> None:
    """`invalid_argument` names the field."""
    if not 1 <= query.limit <= PAGE_MAX:
        raise InvalidArgument(f"limit: {query.limit!r} must be 1 to {PAGE_MAX}")


def _storable(text: str) -> bool:
    """Whether every character is printable: no line ends, no NUL, no lone surrogate."""
    return text.isprintable()


def _check_message(field: str, message: OutboxMessage) -> None:
    if not message.queue or not message.id or not message.dedup_key:
        raise InvalidArgument(f"{field}: {message!r} needs a queue, an id and a dedup_key")


def _check_ask(change: Ask) -> None:
    if not 1 <= len(change.questions) <= ASKED_MAX:
        raise InvalidArgument(f"questions: {len(change.questions)} at once; ask 1 to {ASKED_MAX}")
    _check_message("message", change.message)
    for question in change.questions:
        check_question(question)
    if len({question.question_id for question in change.questions}) < len(change.questions):
        raise InvalidArgument("question_id: two of the questions have the same; give each a key of its own")
    if len({question.envelope_id for question in change.questions}) > 1:
        raise InvalidArgument("envelope_id: the questions of one call are of one envelope")


def check_question(question: Question) -> None:
    """`invalid_argument` names the field."""
    _check_question_id(question.question_id)
    if question.kind not in get_args(QuestionKind):
        raise InvalidArgument(f"kind: {question.kind!r} must be one of {', '.join(get_args(QuestionKind))}")
    if not question.envelope_id:
        raise InvalidArgument("envelope_id: '' is empty; it names the envelope that asks")
    if len(question.message) > QUESTION_CHARS_MAX:
        raise InvalidArgument(f"message: {len(question.message)} characters are more than {QUESTION_CHARS_MAX}")
    try:
        size = len(msgspec.json.encode([question.schema, question.params]))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidArgument(f"params: they cannot be stored: {error}") from error
    if size > QUESTION_BYTES_MAX:
        raise InvalidArgument(f"params: {size} bytes with the schema are more than {QUESTION_BYTES_MAX}")


def _check_answer(change: Answer) -> None:
    _check_question_id(change.question_id)
    if change.action not in get_args(AnswerAction):
        raise InvalidArgument(f"action: {change.action!r} must be one of {', '.join(get_args(AnswerAction))}")
    if change.action != "accept" and change.content is not None:
        raise InvalidArgument(f"content: {change.action!r} has none; leave it out")
    if len(change.by) > OWNER_CHARS_MAX or not (_storable(change.by) or not change.by):
        raise InvalidArgument(f"by: {change.by[:300]!r} must have at most {OWNER_CHARS_MAX} printable characters")


def _check_question_id(question_id: str) -> None:
    if not 1 <= len(question_id) <= 255 or not _storable(question_id):
        raise InvalidArgument(f"question_id: {question_id[:300]!r} must have 1 to 255 printable characters")


def _check_split(change: Split) -> None:
    if not change.children:
        raise InvalidArgument("children: [] is empty; a branch without output ends with Finish")
    if len(set(change.children)) != len(change.children) or change.envelope_id in change.children:
        raise InvalidArgument(f"children: {change.children!r} must differ from each other and from their parent")
