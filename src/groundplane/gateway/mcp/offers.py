"""Prompts, resources and completions over MCP: static data, or what actors make of the arguments as jobs."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError
from mcp.shared.uri_template import UriTemplate
from mcp_types import (
    INVALID_PARAMS,
    CompleteRequestParams,
    CompleteResult,
    Completion,
    GetPromptRequestParams,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    PaginatedRequestParams,
    PromptArgument,
    ReadResourceRequestParams,
    ResourceTemplateReference,
)
from mcp_types import Prompt as ListedPrompt
from mcp_types import Resource as ListedResource
from mcp_types import ResourceTemplate as ListedTemplate

from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.gateway.catalogue import Completions, Prompt, Resource
from groundplane.gateway.mcp.calls import Calls
from groundplane.gateway.mcp.content import prompt_messages
from groundplane.gateway.mcp.context import Context
from groundplane.gateway.mcp.errors import job_error
from groundplane.gateway.mcp.results import JOB_META
from groundplane.gateway.services import Services
from groundplane.gateway.shapes import carryable
from groundplane.jobs.port import Job, JobState

VALUES_MAX = 100
STATIC_TTL_MS = 60_000
_ENCODER = msgspec.json.Encoder(enc_hook=str)


class Offers:
    """Answers `prompts/*`, `resources/*` and `completion/complete`."""

    def __init__(self, services: Services, calls: Calls) -> None:
        self._catalogue = services.catalogue
        self._calls = calls
        self._templates = [(one, UriTemplate.parse(one.spec.uri)) for one in self._catalogue.templates]

    def register(self, server: Server[Any]) -> None:
        """Serve the methods of what there is: a server is not to claim what it has nothing of."""
        catalogue = self._catalogue
        if any(catalogue.prompts):
            server.add_request_handler("prompts/list", PaginatedRequestParams, self._list_prompts)
            server.add_request_handler("prompts/get", GetPromptRequestParams, self._get_prompt)
        if any(catalogue.resources) or self._templates:
            server.add_request_handler("resources/list", PaginatedRequestParams, self._list_resources)
            server.add_request_handler("resources/templates/list", PaginatedRequestParams, self._list_templates)
            server.add_request_handler("resources/read", ReadResourceRequestParams, self._read)
        owners: list[Prompt | Resource] = [*catalogue.prompts, *catalogue.templates]
        if any(one.spec.complete for one in owners):
            server.add_request_handler("completion/complete", CompleteRequestParams, self._complete)

    def find(self, uri: str) -> tuple[Resource, dict[str, str]] | None:
        """The resource of that URI with the values of its variables; None where there is none."""
        try:
            return self._catalogue.resource(uri), {}
        except NotFound:
            pass
        for one, template in self._templates:
            matched = template.match(uri)
            if matched is not None:
                return one, {name: str(value) for name, value in matched.items()}
        return None

    async def _list_prompts(self, ctx: Context, params: PaginatedRequestParams) -> ListPromptsResult:
        refuse_cursor(params)
        return ListPromptsResult(prompts=[_listed_prompt(one) for one in self._catalogue.prompts])

    async def _get_prompt(self, ctx: Context, params: GetPromptRequestParams) -> Any:
        prompt = self._catalogue.prompt(params.name)
        description = prompt.spec.description or None
        if prompt.work is None:
            return {"messages": prompt_messages(prompt.spec.text), "description": description, "resultType": "complete"}
        arguments = prompt.work.arguments(dict(params.arguments or {}))
        job = await self._calls.perform(ctx, prompt.work, arguments, params)
        if not isinstance(job, Job):
            return job
        try:
            messages = prompt_messages(_made(job))
        except InvalidArgument as error:
            raise InvalidArgument(f"prompt {params.name!r}: {error.message}", details=error.details) from error
        meta = {JOB_META: job.job_id}
        return {"messages": messages, "description": description, "resultType": "complete", "_meta": meta}

    async def _list_resources(self, ctx: Context, params: PaginatedRequestParams) -> ListResourcesResult:
        refuse_cursor(params)
        return ListResourcesResult(resources=[_listed_resource(one) for one in self._catalogue.resources])

    async def _list_templates(self, ctx: Context, params: PaginatedRequestParams) -> ListResourceTemplatesResult:
        refuse_cursor(params)
        return ListResourceTemplatesResult(
            resource_templates=[_listed_template(one) for one in self._catalogue.templates]
        )

    async def _read(self, ctx: Context, params: ReadResourceRequestParams) -> Any:
        uri = str(params.uri)
        found = self.find(uri)
        if found is None:
            raise unknown_resource(uri)
        resource, variables = found
        spec, meta = resource.spec, {}
        if resource.work is None:
            value: Any = spec.text if spec.text is not None else spec.data
        else:
            job = await self._calls.perform(ctx, resource.work, resource.work.arguments(variables), params)
            if not isinstance(job, Job):
                return job
            value, meta = _made(job, uri=uri), {JOB_META: job.job_id}
        contents = [{"uri": uri, "mimeType": spec.mime_type, **_held(value)}]
        kept = {"ttlMs": STATIC_TTL_MS if resource.work is None else 0, "cacheScope": "private"}
        return {"contents": contents, "resultType": "complete", "_meta": meta, **kept}

    async def _complete(self, ctx: Context, params: CompleteRequestParams) -> CompleteResult:
        owner = self._completed(params)
        argument = params.argument
        one = owner.specs.get(argument.name)
        work = owner.work(argument.name)
        if one is None:
            found: list[Any] = []
        elif work is None:
            found = [value for value in one.values if value.lower().startswith(argument.value.lower())]
        else:
            others = dict((params.context.arguments if params.context else None) or {})
            given = {"value": argument.value, "arguments": others}
            job = await self._calls.perform(ctx, work, {name: given[name] for name in one.takes}, params)
            made = _made(job) if isinstance(job, Job) else []
            if not isinstance(made, list):
                raise InvalidArgument(f"completion of {argument.name!r}: {made!r} is not a list of texts")
            found = [str(value) for value in made]
        shown = found[:VALUES_MAX]
        return CompleteResult(completion=Completion(values=shown, total=len(found), has_more=len(found) > len(shown)))

    def _completed(self, params: CompleteRequestParams) -> Completions:
        if isinstance(params.ref, ResourceTemplateReference):
            return self._catalogue.resource(params.ref.uri).completions
        return self._catalogue.prompt(params.ref.name).completions


def refuse_cursor(params: PaginatedRequestParams) -> None:
    """Lists come whole, so that no cursor was ever given out."""
    if params.cursor is not None:
        raise MCPError(INVALID_PARAMS, f"cursor: {params.cursor[:100]!r} is unknown; everything comes at once")


def unknown_resource(uri: str) -> MCPError:
    """The error for a URI that no resource has."""
    return MCPError(INVALID_PARAMS, f"uri: {uri[:200]!r} is no resource; see resources/list", {"uri": uri})


def _made(job: Job, **data: Any) -> Any:
    if job.state is not JobState.SUCCEEDED:
        raise job_error(job, **data)
    return job.result


def _held(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, bytes):
        return {"blob": base64.b64encode(value).decode("ascii")}
    return {"text": _ENCODER.encode(carryable(value)).decode()}


def _listed_prompt(prompt: Prompt) -> ListedPrompt:
    spec = prompt.spec
    return ListedPrompt(
        name=spec.name,
        title=spec.title or None,
        description=spec.description or None,
        arguments=[
            PromptArgument(name=one.name, description=one.description or None, required=one.required)
            for one in spec.arguments
        ],
    )


def _listed_resource(resource: Resource) -> ListedResource:
    spec = resource.spec
    held = spec.text.encode() if spec.text is not None else spec.data
    return ListedResource(
        uri=spec.uri,
        name=spec.name,
        title=spec.title or None,
        description=spec.description or None,
        mime_type=spec.mime_type,
        size=len(held) if held is not None else None,
    )


def _listed_template(resource: Resource) -> ListedTemplate:
    spec = resource.spec
    return ListedTemplate(
        uri_template=spec.uri,
        name=spec.name,
        title=spec.title or None,
        description=spec.description or None,
        mime_type=spec.mime_type,
    )


__all__ = ["Offers", "refuse_cursor", "unknown_resource"]
