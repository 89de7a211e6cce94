"""Every name that traces use: spans, attributes, events. No other module spells one out.

Those of others are written as their conventions write them (OpenTelemetry semantic conventions 1.40 for HTTP and
messaging, the GenAI conventions for MCP and models; all but HTTP are still in development there). Ours begin with
`groundplane.`. No attribute holds a payload, an argument, a result or the text of a handler's error.
"""

from __future__ import annotations

SCOPE = "groundplane"
"""The instrumentation scope of all spans."""
SCHEMA_URL = "https://opentelemetry.io/schemas/1.40.0"

# Kinds of spans
INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = "internal", "server", "client", "producer", "consumer"

# The process that a span comes from (resource attributes)
SERVICE_NAME = "service.name"
SERVICE_NAMESPACE = "service.namespace"
SERVICE_INSTANCE_ID = "service.instance.id"
PROCESS_PID = "process.pid"
ROLE = "groundplane.role"

# General
ERROR_TYPE = "error.type"
EXCEPTION = "exception"
EXCEPTION_TYPE = "exception.type"

# HTTP
HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
URL_PATH = "url.path"
URL_SCHEME = "url.scheme"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
PROTOCOL_NAME = "network.protocol.name"
TRANSPORT = "network.transport"

# Messaging
MESSAGING_SYSTEM = "messaging.system"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION = "messaging.destination.name"
MESSAGE_ID = "messaging.message.id"
BODY_SIZE = "messaging.message.body.size"
CONVERSATION_ID = "messaging.message.conversation_id"
BATCH_COUNT = "messaging.batch.message_count"

# MCP
MCP_METHOD = "mcp.method.name"
MCP_SESSION = "mcp.session.id"
MCP_VERSION = "mcp.protocol.version"
MCP_RESOURCE = "mcp.resource.uri"
JSONRPC_ID = "jsonrpc.request.id"
RPC_STATUS = "rpc.response.status_code"

# GenAI. The first three are set on MCP's spans; the others are kept for calls of models.
GENAI_OPERATION = "gen_ai.operation.name"
GENAI_TOOL = "gen_ai.tool.name"
GENAI_PROMPT = "gen_ai.prompt.name"
GENAI_PROVIDER = "gen_ai.provider.name"
GENAI_REQUEST_MODEL = "gen_ai.request.model"
GENAI_RESPONSE_MODEL = "gen_ai.response.model"
GENAI_FINISH_REASONS = "gen_ai.response.finish_reasons"
GENAI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GENAI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
EXECUTE_TOOL = "execute_tool"
TOOL_ERROR = "tool_error"

# Ours
JOB_ID = "groundplane.job.id"
JOB_STATE = "groundplane.job.state"
JOB_REPEATED = "groundplane.job.repeated"
TOOL = "groundplane.tool"
ACTOR = "groundplane.actor"
HOP = "groundplane.hop"
HOPS = "groundplane.hops"
ATTEMPT = "groundplane.attempt"
REDRIVES = "groundplane.redrives"
DELAY_S = "groundplane.delay_s"
REASON = "groundplane.reason"
CHILDREN = "groundplane.children"
JOINED = "groundplane.joined"
MISSING = "groundplane.missing"
BLOB_KEY = "groundplane.blob.key"

# Events of ours
RETRY = "retry"
DEAD_LETTER = "dead_letter"
HANDED_BACK = "handed_back"
PARKED = "parked"
SKIPPED = "skipped"
LATE = "late_outcome"
REPEAT = "repeat_dropped"
CHILD = "child_joined"

# Operations of messaging
CREATE, SEND, PROCESS = "create", "send", "process"

PERSIST = "persist outcome"
_SYSTEMS = {"amqp": "rabbitmq", "amqps": "rabbitmq"}


def on_queue(operation: str, queue: str) -> str:
    """The name of a messaging span: `create double`, `send double`, `process double`."""
    return f"{operation} {queue}"


def call(actor: str) -> str:
    """The name of the span of a call of a handler."""
    return f"call {actor}"


def request(method: str, route: str = "") -> str:
    """The name of the span of an HTTP request: `POST /v1/jobs`, without a known route the method alone."""
    return f"{method} {route}" if route else method


def message(method: str, target: str = "") -> str:
    """The name of the span of an MCP message: `tools/call pipeline`."""
    return f"{method} {target}" if target else method


def command(name: str) -> str:
    """The name of the span of a command."""
    return f"groundplane {name}"


def system_of(url: str) -> str:
    """`messaging.system` for the URL of the queues: the broker's name; `groundplane` for embedded queues."""
    return _SYSTEMS.get(url.partition(":")[0], "groundplane")
