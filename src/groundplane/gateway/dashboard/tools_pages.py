"""Tools: what can be started, and a form that starts it."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp

from groundplane.core.errors import GroundplaneError, NotFound
from groundplane.core.names import did_you_mean
from groundplane.gateway.dashboard import forms
from groundplane.gateway.dashboard.mount import ROOT
from groundplane.gateway.dashboard.site import Visit
from groundplane.gateway.problems import HTTPProblem, of_error


async def listing(visit: Visit) -> ASGIApp:
    """All tools."""
    tools = (await visit.ask("listTools"))["tools"]
    return visit.page("tools.html", tools=sorted(tools, key=lambda tool: str(tool["name"])))


async def show(visit: Visit) -> ASGIApp:
    """One tool with its form."""
    tool = await _tool(visit)
    return _page(visit, tool, forms.fields(tool["input_schema"]))


async def start(visit: Visit) -> ASGIApp:
    """Start a job with what the form says, and look at it; the form again where it cannot be."""
    tool = await _tool(visit)
    schema, form = tool["input_schema"], visit.form
    try:
        typed = form.get(forms.WHOLE, "") if form.get("mode") == "json" else None
        given = forms.whole(typed) if typed is not None else forms.arguments(schema, visit.fields)
        job = await visit.ask("createJob", body={"tool": tool["name"], "arguments": given})
    except (GroundplaneError, HTTPProblem) as error:
        status = error.status if isinstance(error, HTTPProblem) else of_error(error).status_code
        if status == 500:
            raise
        problems = forms.problems(error)
        return _page(visit, tool, forms.fields(schema, visit.fields), problems, form.get(forms.WHOLE, ""), status)
    return visit.go(f"{ROOT}/jobs/{job['job_id']}")


def _page(
    visit: Visit, tool: dict[str, Any], fields: list[dict[str, Any]], problems: dict[str, str] | None = None,
    typed: str = "{}", status: int = 200,
) -> ASGIApp:  # fmt: skip
    known = {field["name"] for field in fields}
    wrong = problems or {}
    other = [f"{name}: {message}".removeprefix(": ") for name, message in wrong.items() if name not in known]
    return visit.page("tool.html", status, tool=tool, fields=fields, wrong=wrong, other=other, typed=typed or "{}")


async def _tool(visit: Visit) -> dict[str, Any]:
    name = visit.path("tool")
    tools = {tool["name"]: tool for tool in (await visit.ask("listTools"))["tools"]}
    if name not in tools:
        raise NotFound(f"tool: {name[:200]!r} does not exist{did_you_mean(name, tools)}", reason="tool_not_found")
    found: dict[str, Any] = tools[name]
    return found
