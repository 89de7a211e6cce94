"""What the official conformance suite of the Model Context Protocol asks of a server, as actors.

The suite knows its fixtures by name: tools, prompts and resources that begin with `test_`, and a few more for tasks.
Nothing here answers by itself: every call is a durable job that actors in their own processes work on. An actor that
serves several tools reads in its headers which one was called.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from groundplane import App, Context, Declined, content
from groundplane.content import Block
from groundplane.mesh.runtime import Question

app = App("mcp-conformance")

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
)
SILENCE = b"RIFF" + struct.pack("<I", 38) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
SILENCE += b"data" + struct.pack("<I", 2) + b"\x00\x00"
ROUTES = Path(__file__).with_name("routes.yaml")


def called(ctx: Context) -> str:
    """The name of the tool (or `prompt:` and the prompt's) that the job was started by."""
    return str(ctx.headers["groundplane-tool"])


# --- content ---------------------------------------------------------------------------------------------------------

SHOWN: dict[str, list[Block]] = {
    "test_simple_text": [content.text("This is a simple text response for testing.")],
    "test_image_content": [content.image(PIXEL, "image/png")],
    "test_audio_content": [content.audio(SILENCE, "audio/wav")],
    "test_embedded_resource": [content.resource("test://embedded-resource", "This is an embedded resource content.")],
    "test_multiple_content_types": [
        content.text("Multiple content types test:"),
        content.image(PIXEL, "image/png"),
        content.resource("test://mixed-content-resource", '{"test":"data","value":123}', "application/json"),
    ],
}


@app.actor
def show(ctx: Context) -> list[Block]:
    """Returns content of the kind that the tool is named after."""
    if called(ctx) == "test_error_handling":
        raise ValueError("This tool intentionally returns an error for testing")
    return SHOWN.get(called(ctx), [content.text("Done.")])


for _name in (*SHOWN, "test_error_handling"):
    app.tool(_name, route=[show], content=True)


# --- progress, logs, a list of tools that changes, arguments in headers, schemas --------------------------------------


@app.actor
async def tell(ctx: Context) -> str:
    """Tells its progress, or logs, while it works."""
    for percent, message in ((0, "execution started"), (50, "processing data"), (100, "execution completed")):
        if called(ctx) == "test_tool_with_progress":
            ctx.progress(percent)
        else:
            ctx.log("info", f"Tool {message}")
        await asyncio.sleep(0.05)
    return "All was told."


@app.actor
def change_tools() -> str:
    """Gives the plane another list of tools: `groundplane dev` watches the file."""
    number = int(ROUTES.read_text().rpartition("number: ")[2]) + 1
    fresh = ROUTES.with_suffix(f".{os.getpid()}")
    tool = f"- name: extra_{number}\n  description: Number {number}.\n  route: [show]\n"
    fresh.write_text(f"tools:\n{tool}# number: {number}\n")
    fresh.replace(ROUTES)
    return f"The list of tools is number {number}."


@app.actor
def take(payload: dict) -> str:
    """Returns how much it was given."""
    return f"{len(payload)} arguments"


for _name in ("test_tool_with_progress", "test_tool_with_logging", "test_logging_tool", "test_reconnection"):
    app.tool(_name, route=[tell], content=True)
app.tool("test_trigger_tool_change", route=[change_tools], content=True)
app.tool(
    "test_custom_headers",
    route=[take],
    description="Takes a region, which travels in a header too.",
    content=True,
    input_schema={
        "type": "object",
        "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
        "required": ["region"],
    },
)
app.tool(
    "json_schema_2020_12_tool",
    route=[take],
    description="Tool with JSON Schema 2020-12 features",
    content=True,
    input_schema={
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            }
        },
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": False,
    },
)


# --- questions: the newer revision answers with input required, the older ones ask on the open stream -----------------


def form(**properties: dict[str, Any]) -> dict[str, Any]:
    """A schema all of whose properties are required."""
    return {"type": "object", "properties": properties, "required": list(properties)}


NAME = form(name={"type": "string"})
DEFAULTS = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
OPTIONS = ["option1", "option2", "option3"]
TITLED = [{"const": f"value{n}", "title": f"{word} Option"} for n, word in enumerate(("First", "Second", "Third"), 1)]
NAMES = ["Option One", "Option Two", "Option Three"]
CHOICES = {
    "untitledSingle": {"type": "string", "enum": OPTIONS},
    "titledSingle": {"type": "string", "oneOf": TITLED},
    "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": NAMES},
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": OPTIONS}},
    "titledMulti": {"type": "array", "items": {"anyOf": TITLED}},
}


def sampled(prompt: str, max_tokens: int) -> Question:
    """A question to the client's model."""
    message = {"role": "user", "content": {"type": "text", "text": prompt}}
    return Question("sample", prompt, None, {"messages": [message], "maxTokens": max_tokens})


async def told(ctx: Context, words: str, message: str, schema: dict[str, Any]) -> str:
    """Asks, and says what came of it."""
    try:
        given = await ctx.ask(message, schema)
    except Declined as declined:
        return f"{words}: action={declined.action}, content={{}}"
    return f"{words}: action=accept, content={json.dumps(given)}"


async def name_of(ctx: Context) -> str:
    """Asks for a name."""
    return f"Hello, {(await ctx.ask('What is your name?', NAME, key='user_name'))['name']}!"


async def capital_of(ctx: Context) -> str:
    """Asks the client's model."""
    answer = await ctx.sample("What is the capital of France?", max_tokens=100, key="capital_question")
    return f"The model says: {answer['content']['text']}"


async def roots_of(ctx: Context) -> str:
    """Asks for the client's roots."""
    return f"The roots are {', '.join(root['uri'] for root in await ctx.roots(key='client_roots'))}"


async def confirmation_of(ctx: Context) -> str:
    """Asks whether all is well."""
    return f"state-ok: {(await ctx.ask('Please confirm', form(ok={'type': 'boolean'}), key='confirm'))['ok']}"


async def all_of(ctx: Context) -> str:
    """Asks a person, the client's model and the client, at once; without roots a person and the model."""
    asked: dict[str, Any] = {"user_name": ("What is your name?", NAME), "greeting": sampled("Generate a greeting", 50)}
    if called(ctx) == "test_input_required_result_multiple_inputs":
        asked["client_roots"] = Question("roots", "")
    found = await ctx.ask_all(asked)
    return f"{found['greeting']['content']['text']} {found['user_name']['name']}"


async def steps_of(ctx: Context) -> str:
    """Asks for a name, then for a colour."""
    name = (await ctx.ask("Step 1: What is your name?", NAME, key="step1"))["name"]
    given = await ctx.ask("Step 2: What is your favorite color?", form(color={"type": "string"}), key="step2")
    return f"{name} likes {given['color']}"


async def context_of(ctx: Context) -> str:
    """Asks what a prompt is about."""
    given = await ctx.ask("What context should the prompt use?", form(context={"type": "string"}), key="user_context")
    return f"Write about {given['context']}."


async def defaults_of(ctx: Context) -> str:
    """Asks with defaults."""
    return await told(ctx, "Elicitation completed", "Look it over.", {"type": "object", "properties": DEFAULTS})


async def choices_of(ctx: Context) -> str:
    """Asks for choices of each form."""
    return await told(ctx, "Elicitation completed", "Please choose.", {"type": "object", "properties": CHOICES})


async def two_of(ctx: Context) -> str:
    """Asks two things at once."""
    both = {"name": str, "confirm": bool}
    found = await ctx.ask_all({"first": ("What is your name?", both), "second": ("And your friend's?", both)})
    return f"{found['first']['name']} and {found['second']['name']}"


ASKING: dict[str, Callable[[Context], Awaitable[str]]] = {
    "test_elicitation_sep1034_defaults": defaults_of,
    "test_elicitation_sep1330_enums": choices_of,
    "test_missing_capability": capital_of,
    "test_streaming_elicitation": name_of,
    "test_input_required_result_elicitation": name_of,
    "test_input_required_result_sampling": capital_of,
    "test_input_required_result_list_roots": roots_of,
    "test_input_required_result_request_state": confirmation_of,
    "test_input_required_result_tampered_state": confirmation_of,
    "test_input_required_result_multiple_inputs": all_of,
    "test_input_required_result_capabilities": all_of,
    "test_input_required_result_multi_round": steps_of,
}


@app.actor
async def ask(ctx: Context) -> str:
    """Asks what the tool is named after."""
    others = {"prompt:test_input_required_result_prompt": context_of, "multi_input": two_of}
    return await {**ASKING, **others}.get(called(ctx), name_of)(ctx)


@app.actor
async def ask_for(ctx: Context, message: str = "", prompt: str = "", filename: str = "") -> str:
    """Asks a person or the client's model what the caller wants to know."""
    if prompt:
        return f"LLM response: {(await ctx.sample(prompt, max_tokens=100))['content']['text']}"
    if filename:
        meant = await ctx.ask(f"Delete {filename}?", {"confirm": bool}, key="confirm")
        return f"{filename} was {'deleted' if meant['confirm'] else 'kept'}."
    described = {"username": "User's response", "email": "User's email address"}
    schema = form(**{name: {"type": "string", "description": text} for name, text in described.items()})
    return await told(ctx, "User response", message, schema)


for _name in ASKING:
    app.tool(_name, route=[ask], content=True)
app.tool("test_elicitation", route=[ask_for], content=True, input_schema=form(message={"type": "string"}))
app.tool("test_sampling", route=[ask_for], content=True, input_schema=form(prompt={"type": "string"}))
app.prompt("test_input_required_result_prompt", route=[ask])


# --- prompts and resources -------------------------------------------------------------------------------------------


@app.actor
def with_arguments(arg1: str, arg2: str) -> str:
    """Shows its arguments.

    Args:
        arg1: First test argument.
        arg2: Second test argument.
    """
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


@app.actor
def with_content(resourceUri: str = "") -> list[dict]:  # noqa: N803 - the suite calls it so
    """Shows a resource, or a picture.

    Args:
        resourceUri: URI of the resource to embed.
    """
    if not resourceUri:
        return [content.message(content.image(PIXEL, "image/png")), content.message("Please analyze the image above.")]
    document = content.resource(resourceUri, "Embedded resource content for testing.")
    return [content.message(document), content.message("Please process the embedded resource above.")]


@app.actor
def places(value: str) -> list[str]:
    """Places whose names begin so."""
    return [place for place in ("paris", "park", "party") if place.startswith(value)]


@app.actor
def numbered(id: str) -> dict:  # noqa: A002 - the suite calls it so
    """The data of a number."""
    return {"id": id, "templateTest": True, "data": f"Data for ID: {id}"}


app.prompt("test_simple_prompt", text="This is a simple prompt for testing.", description="A prompt without arguments.")
app.prompt("test_prompt_with_arguments", route=[with_arguments], complete={"arg1": places, "arg2": ["one", "two"]})
app.prompt("test_prompt_with_embedded_resource", route=[with_content])
app.prompt("test_prompt_with_image", route=[with_content])

app.resource(
    "test://static-text",
    text="This is the content of the static text resource.",
    name="static text",
    description="A text that does not change.",
)
app.resource(
    "test://static-binary", data=PIXEL, mime_type="image/png", name="static binary", description="One red pixel."
)
app.resource("test://watched-resource", text="Watched.", name="watched", description="test_touch changes it.")
app.resource("test://template/{id}/data", route=[numbered], mime_type="application/json", name="numbered data")
app.tool("test_touch", route=[show], content=True, updates=["test://watched-resource"])


# --- tasks -----------------------------------------------------------------------------------------------------------


@app.actor
async def compute(ctx: Context, seconds: float = 0.0, label: str = "", name: str = "") -> str:
    """Takes its time, and greets, fails or computes, as the tool is named."""
    if called(ctx) == "greet":
        return f"Hello, {name}!"
    await asyncio.sleep({"failing_job": 0.5, "protocol_error_job": 3600.0}.get(called(ctx), seconds))
    if called(ctx) == "failing_job":
        raise ValueError("the job fails, as it is meant to")
    return f"Computed {label or 'something'} in {seconds:g} seconds."


TIMED = {"type": "object", "properties": {"seconds": {"type": "number"}, "label": {"type": "string"}}}
app.tool("greet", route=[compute], content=True, task="never", input_schema=form(name={"type": "string"}))
app.tool("slow_compute", route=[compute], content=True, task_after=0, input_schema=TIMED)
app.tool("failing_job", route=[compute], content=True, task="required", task_after=0)
app.tool("protocol_error_job", route=[compute], content=True, task_after=0, timeout=1)
app.tool("confirm_delete", route=[ask_for], content=True, task_after=0, input_schema=form(filename={"type": "string"}))
app.tool("multi_input", route=[ask], content=True, task_after=0)
app.tool("test_tool_with_task", route=[ask], content=True, task="required", task_after=30)
