"""What a job asks, put to MCP clients of either revision, and their answers.

Newer revision: a call whose job asks is answered with `input_required`; the client repeats it with the answers and the
`requestState`, a sealed name of the job, and the same job goes on. Older revisions: requests on the call's open stream,
whose ids name job and question, so that the answer may reach any replica.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
from collections.abc import Mapping
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, INVALID_PARAMS

from groundplane.core.errors import FailedPrecondition, GroundplaneError, InvalidArgument
from groundplane.gateway.mcp.context import Context, caller, capabilities
from groundplane.gateway.mcp.errors import MissingCapability
from groundplane.gateway.services import Services
from groundplane.jobs.port import Job, Question
from groundplane.security.access import Caller
from groundplane.telemetry.logs import get_logger

METHODS = {"elicit": "elicitation/create", "sample": "sampling/createMessage", "roots": "roots/list"}
CAPABILITIES = {"elicit": "elicitation", "sample": "sampling", "roots": "roots"}
ACTIONS = ("accept", "decline", "cancel")
_PREFIX = "question:"
_NONCE_BYTES = 12
_log = get_logger("gateway")


class _Round(msgspec.Struct, frozen=True):
    """What a `requestState` holds: the job, and the call that it belongs to."""

    job_id: str
    call: str
    owner: str


class RequestStates:
    """Seals and opens `requestState` (AES-256-GCM). `key` is one for all replicas, 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, job_id: str, call: str, owner: str) -> str:
        """A new state, other than every one before."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, msgspec.json.encode(_Round(job_id, call, owner)), None)
        return base64.urlsafe_b64encode(nonce + sealed).decode("ascii")

    def open(self, state: str, call: str, owner: str) -> str:
        """The job's id. Raises the protocol's error for what was not sealed here, or for another call."""
        try:
            data = base64.b64decode(state.encode("ascii"), altchars=b"-_", validate=True)
            opened = self._cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], None)
            held = msgspec.json.decode(opened, type=_Round)
        except (binascii.Error, UnicodeEncodeError, ValueError, InvalidTag) as error:
            raise MCPError(INVALID_PARAMS, "requestState: was not made here, or was changed; call afresh") from error
        if (held.call, held.owner) != (call, owner):
            raise MCPError(INVALID_PARAMS, "requestState: belongs to another call; repeat the very call that asked")
        return held.job_id


class Questions:
    """Puts the open questions of jobs to clients, and brings back what they answer."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def requests(self, ctx: Context, job: Job, *, named: bool = False) -> dict[str, Any]:
        """The open questions that the client can answer, as `inputRequests` by id; by the handler's keys if `named`."""
        declared = capabilities(ctx)
        asked = [one for one in job.questions if CAPABILITIES[one.kind] in declared]
        return {name_of(one) if named else one.question_id: request_of(one) for one in asked}

    def check(self, ctx: Context, job: Job) -> None:
        """Raise where the client can answer none of the open questions."""
        if not self.requests(ctx, job):
            needed = sorted({CAPABILITIES[one.kind] for one in job.questions})
            message = f"the tool asks the client, which does not declare {', '.join(needed)}"
            raise MissingCapability(message, **{name: {} for name in needed})

    async def answer(self, caller: Caller, job: Job, responses: dict[str, Any]) -> Job:
        """Give the answers to the open questions that they name, by id or key, and take them out: none is for two
        questions. Others are passed over. The job as it is then.
        """
        for one in job.questions:
            key = next((key for key in (one.question_id, name_of(one)) if key in responses), None)
            if key is not None:
                job = await self.give(caller, job, one, responses.pop(key))
        return job

    async def give(self, caller: Caller, job: Job, question: Question, response: Any) -> Job:
        """One answer. Somebody else's that came first stays."""
        action, content = answer_of(question, response)
        try:
            return await self._services.answer(caller, job.job_id, question.question_id, content, action=action)
        except FailedPrecondition as error:
            if error.reason not in ("question_answered", "job_terminal"):
                raise
            return await self._services.jobs.get(job.job_id)


class Asking:
    """The questions that one call of an older revision has put to its client, each by a request on the call's stream;
    those that are still out when it is left are withdrawn.
    """

    def __init__(self, questions: Questions, ctx: Context) -> None:
        self._questions = questions
        self._ctx = ctx
        self._out: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Asking:
        return self

    async def __aexit__(self, *_: object) -> None:
        for one in self._out.values():
            one.cancel()
        await asyncio.gather(*self._out.values(), return_exceptions=True)

    def put(self, job: Job) -> None:
        """Put those that the client can answer and has not been asked."""
        declared = capabilities(self._ctx)
        for one in job.questions:
            if one.question_id not in self._out and CAPABILITIES[one.kind] in declared:
                name = f"question:{one.question_id}"
                self._out[one.question_id] = asyncio.create_task(self._put(job, one), name=name)

    async def _put(self, job: Job, question: Question) -> None:
        """An error for an answer is a refusal: the client cannot, or will not."""
        shown = request_of(question)
        request_id = question_request_id(job.job_id, question.question_id)
        outbound = self._ctx.session._request_outbound
        while True:
            try:
                response = await outbound.send_raw_request(shown["method"], shown["params"], {"request_id": request_id})
            except MCPError as error:
                if error.error.code == CONNECTION_CLOSED:
                    return  # the job waits; who resumes the call is asked again
                response = None
            try:
                await self._questions.give(caller(self._ctx), job, question, response)
            except GroundplaneError as error:
                _log.info("answer_refused", job_id=job.job_id, question=question.question_id, error=error.message)
                continue
            return


def name_of(question: Question) -> str:
    """What the handler called the question, where that names one alone; else its id, which is unique in its job.

    Ids are `actor.hop.key`, with a fourth part for the branches of a fan-out; keys that were not given are numbers.
    """
    parts = question.question_id.removeprefix(f"{question.actor}.").split(".")
    return parts[1] if len(parts) == 2 and parts[1][:1].isalpha() else question.question_id


def question_request_id(job_id: str, question_id: str) -> str:
    """The JSON-RPC id of the request that puts a question; any replica reads it from the client's response."""
    return f"{_PREFIX}{job_id}:{question_id}"


def question_of_request(request_id: Any) -> tuple[str, str] | None:
    """Job and question that the id of a response names; None where it was not made by `question_request_id`."""
    if not isinstance(request_id, str) or not request_id.startswith(_PREFIX):
        return None
    job_id, colon, question_id = request_id.removeprefix(_PREFIX).partition(":")
    return (job_id, question_id) if colon else None


def request_of(question: Question) -> dict[str, Any]:
    """The request of the protocol that a question is."""
    params = dict(question.params)
    if question.kind == "elicit":
        params = {"message": question.message, "requestedSchema": question.schema, **params}
    return {"method": METHODS[question.kind], "params": params}


def answer_of(question: Question, response: Any) -> tuple[Any, Any]:
    """Action and content of a client's response. None is a refusal.

    Raises `InvalidArgument` that names the field where it is not what the question takes.
    """
    field = f"inputResponses.{name_of(question)}"
    if response is None:
        return "cancel", None
    if not isinstance(response, Mapping):
        raise InvalidArgument(f"{field}: {response!r} is not an object", details={"field": field})
    if question.kind != "elicit":
        return "accept", dict(response)
    action = response.get("action")
    if action not in ACTIONS:
        raise InvalidArgument(
            f"{field}.action: {action!r} is not one of {', '.join(ACTIONS)}", details={"field": f"{field}.action"}
        )
    return action, response.get("content") if action == "accept" else None


__all__ = [
    "Questions", "RequestStates", "answer_of", "name_of", "question_of_request", "question_request_id", "request_of",
]  # fmt: skip
