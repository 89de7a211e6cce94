"""Names handlers of a module that does not import groundplane; it is not imported here either."""

from groundplane import App

NUMBERS = {
    "type": "object",
    "properties": {"numbers": {"type": "array", "items": {"type": "number"}, "minItems": 1}},
    "required": ["numbers"],
    "additionalProperties": False,
}

app = App("plain-handler")
app.add_actor("handlers:describe")
app.add_actor("handlers:stamp", handler_mode="message")
app.tool(
    "describe",
    route=["describe", "stamp"],
    description="Mean, median and spread of some numbers.",
    input_schema=NUMBERS,
    timeout=30,
)
