"""The reasons: what an error's `reason` may say, the code it comes with, whether it is retried, and what to do.

This table is the source of the page `reference/errors` of the documentation.
"""

from __future__ import annotations

from groundplane.core.backend_reasons import BACKEND_REASONS, Reason

REASONS: dict[str, Reason] = {
    **BACKEND_REASONS,
    # the mesh
    "processing_error": Reason(
        "internal",
        True,
        "The handler raised an exception.",
        "Read type and traceback; mend the handler; redrive the dead letter. Retried as the actor's policy says.",
    ),
    "msg_parsing_error": Reason(
        "invalid_argument",
        False,
        "The message is no envelope, or its payload does not fit the handler's signature.",
        "Mend the sender or the handler's annotations; redrive with an edited payload.",
    ),
    "route_error": Reason(
        "invalid_argument",
        False,
        "The route names an unknown actor, its past was edited, or it has more hops than allowed.",
        "Mend the route; raise hops_max only if the loop is meant.",
    ),
    "connection_error": Reason(
        "unavailable",
        True,
        "The runtime's socket could not be reached or broke.",
        "Look at the runtime's log; it is retried by itself.",
    ),
    "oom_error": Reason(
        "resource_exhausted",
        True,
        "The handler ran out of memory.",
        "Give the actor more memory or smaller payloads. Retried once.",
    ),
    "cuda_oom_error": Reason(
        "resource_exhausted",
        True,
        "The handler ran out of GPU memory.",
        "Use a smaller batch, or set a cleanup hook. Retried once.",
    ),
    "timeout_error": Reason(
        "deadline_exceeded",
        False,
        "The handler ran longer than its timeout and was killed.",
        "Raise the actor's timeout, or split the work; the work is not retried by itself.",
    ),
    "runtime_crashed": Reason(
        "unavailable",
        True,
        "The worker died under the handler (signal or exit).",
        "Look at the runtime's log for the exit status; it is retried up to the queue's limit.",
    ),
    "max_retries_exhausted": Reason(
        "internal",
        False,
        "Every attempt that the policy allows has failed.",
        "Look at the last error in the details.",
    ),
    "non_retryable": Reason(
        "internal", False, "The error's type is listed as not retryable.", "Mend the cause, then redrive."
    ),
    "deadline_exceeded": Reason(
        "deadline_exceeded",
        False,
        "The deadline of the envelope or the job passed.",
        "Allow more time, or find what waits.",
    ),
    "aborted": Reason("internal", False, "The handler ended the route early; not a failure.", "Nothing to do."),
    "attempts_exhausted": Reason(
        "unavailable",
        False,
        "The message was handed out attempts_max times and never settled.",
        "Look for crashes of the consumer; redrive the dead letter.",
    ),
    "join_timeout": Reason(
        "deadline_exceeded",
        False,
        "Not every child arrived before the join's deadline.",
        "The handler got the partial list; look at the dead letters of the missing children.",
    ),
    "effect_in_doubt": Reason(
        "failed_precondition",
        False,
        "An earlier attempt began the effect of ctx.once and did not record its end.",
        "Find out whether the effect happened; use in_doubt='run' for effects that are idempotent by key.",
    ),
    "payload_too_large": Reason(
        "invalid_argument",
        False,
        "The payload or message is over its limit.",
        "Send less, or put the data into blobs and send its key.",
    ),
    "runtime_not_ready": Reason(
        "unavailable",
        True,
        "The runtime's socket did not answer in time.",
        "Start the runtime, look at its log.",
    ),
    "queue_not_ready": Reason(
        "unavailable", True, "The actor's queue did not exist in time.", "Start the plane that declares it."
    ),
    "store_not_ready": Reason(
        "unavailable",
        True,
        "Jobs, ledger or blobs could not be reached in time at the start.",
        "Start the database or the object store; mend its URL.",
    ),
    "handler_import_failed": Reason(
        "failed_precondition",
        False,
        "The handler cannot be imported.",
        "Mend the module or the name; see the traceback.",
    ),
    # queues
    "queue_not_found": Reason("not_found", False, "The queue does not exist.", "Declare the queue, or mend its name."),
    "delivery_settled": Reason(
        "failed_precondition", False, "The delivery was settled before.", "Settle each delivery once."
    ),
    "delivery_lost": Reason(
        "failed_precondition",
        False,
        "The delivery went back to the queue (its consumer was taken for dead).",
        "Extend it in time; another consumer has it now.",
    ),
    # the message broker
    "broker_unreachable": Reason(
        "unavailable", True, "No host of the URL takes connections.", "Start the broker; mend host and port."
    ),
    "broker_silent": Reason(
        "unavailable",
        True,
        "The broker takes connections and does not answer, or fell silent.",
        "Look whether it is frozen, out of memory, or behind a network that drops packets.",
    ),
    "connection_lost": Reason(
        "unavailable",
        True,
        "The connection broke; whether what was under way happened is unknown.",
        "Nothing to do: it is repeated under the same id.",
    ),
    "connection_forced": Reason(
        "unavailable", True, "The broker is being stopped or an operator closed the connection.", "Start the broker."
    ),
    "malformed_frame": Reason(
        "unavailable",
        True,
        "The peer sent bytes that are no valid AMQP 0-9-1, or no NATS.",
        "Look at what stands between here and the broker.",
    ),
    "broker_error": Reason(
        "unavailable", True, "The broker failed inside (AMQP 541).", "Read the broker's log; it is retried."
    ),
    "broker_blocked": Reason(
        "resource_exhausted",
        True,
        "The broker refuses messages: its memory or disk alarm is on.",
        "Free memory or disk on the broker, or let consumers catch up.",
    ),
    "broker_slow": Reason(
        "deadline_exceeded",
        True,
        "The broker lives and did not answer one request in time.",
        "Look at its load and at queues without a leader.",
    ),
    "message_refused": Reason(
        "resource_exhausted",
        True,
        "The broker did not take the message: the queue is full or has no leader.",
        "Let consumers catch up, raise depth_max, or mend the queue.",
    ),
    "login_refused": Reason(
        "permission_denied", False, "The broker refused user and password.", "Mend them in the URL."
    ),
    "access_refused": Reason(
        "permission_denied",
        False,
        "The user may not do this on the broker.",
        "Give it permissions: `rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*'`.",
    ),
    "vhost_refused": Reason(
        "permission_denied",
        False,
        "The virtual host does not exist, or the user may not enter it.",
        "`rabbitmqctl add_vhost VHOST`, then `rabbitmqctl set_permissions`; mend the URL's path.",
    ),
    "not_amqp": Reason(
        "failed_precondition",
        False,
        "What answers at this host and port is no AMQP 0-9-1 broker.",
        "Mend the port (5672, with TLS 5671; 15672 is the management page), or amqp:// against amqps://.",
    ),
    "tls_failed": Reason(
        "failed_precondition",
        False,
        "TLS could not be agreed on: no TLS on that port, or a certificate that is not trusted.",
        "Mend cafile, the host name or the port.",
    ),
    "exchange_not_found": Reason("not_found", False, "The exchange does not exist.", "Declare the exchange."),
    "queue_exists_with_other_arguments": Reason(
        "failed_precondition",
        False,
        "A queue or exchange of this name exists and was declared differently.",
        "Drain and delete the old one, or use another namespace.",
    ),
    "queue_in_use": Reason(
        "failed_precondition", False, "The queue has consumers or messages.", "Stop the consumers, drain the queue."
    ),
    "resource_locked": Reason(
        "failed_precondition", False, "Another connection holds the queue for itself.", "End that connection first."
    ),
    "message_invalid": Reason(
        "invalid_argument", False, "The broker refused the message itself.", "Look at its size and properties."
    ),
    "protocol_error": Reason(
        "internal", False, "The broker says that this client broke the protocol.", "Report it, with the broker's log."
    ),
    "consumer_cancelled": Reason(
        "unavailable",
        True,
        "The broker ended the consumer: its queue was deleted or lost its leader.",
        "Declare the queue again; consuming resumes by itself.",
    ),
    # jobs
    "job_not_found": Reason("not_found", False, "No job has this id.", "Look at `groundplane jobs list`."),
    "job_terminal": Reason(
        "failed_precondition", False, "The job has ended; terminal states never change.", "Start a new job."
    ),
    "job_cancelled": Reason(
        "failed_precondition",
        False,
        "The job was cancelled before it had a result.",
        "Start a new job if it is wanted.",
    ),
    "job_state": Reason(
        "failed_precondition", False, "The job's state does not allow this.", "Look at the job's state first."
    ),
    "declined": Reason(
        "failed_precondition",
        False,
        "The person who was asked declined, or dismissed the question, and the handler did not catch it.",
        "Start a new job, or catch `Declined` in the handler.",
    ),
    "question_changed": Reason(
        "failed_precondition",
        False,
        "A run of the handler asked something else under the same key than the run before it.",
        "Give each question a key; take what changes from run to run (times, counts) from ctx.once.",
    ),
    "question_not_found": Reason(
        "not_found", False, "The job has no question with this id.", "Look at the questions of the job."
    ),
    "question_open": Reason(
        "failed_precondition",
        False,
        "The job waits for an answer; nothing else lets it go on.",
        "Answer its questions, or cancel it.",
    ),
    "question_answered": Reason(
        "failed_precondition",
        False,
        "The question was answered before; an answer never changes.",
        "Look at the job's questions; start a new job where the answer was wrong.",
    ),
    "question_refused": Reason(
        "failed_precondition",
        False,
        "A handler asked, and its job does not take the question: the branch has ended, or there were too many.",
        "Look at the details; ask less often, or several questions at once.",
    ),
    "idempotency_mismatch": Reason(
        "conflict",
        False,
        "The idempotency key was used with other arguments.",
        "Use a new key for new work.",
    ),
    "live_jobs": Reason(
        "resource_exhausted",
        True,
        "The caller has as many jobs that have not ended as it may have.",
        "Wait for one to end, or cancel it; raise gateway.live_jobs if the limit is too low.",
    ),
    "rate_exceeded": Reason(
        "resource_exhausted",
        True,
        "The caller sends more requests per second than it may.",
        "Wait as Retry-After says; raise gateway.rate or gateway.burst if the limit is too low.",
    ),
    "too_many_streams": Reason(
        "resource_exhausted",
        True,
        "The caller has as many open streams as it may have.",
        "Close one, or ask for results instead; raise gateway.streams if the limit is too low.",
    ),
    "too_many_connections": Reason(
        "unavailable",
        True,
        "The gateway has as many connections as it may have.",
        "Use fewer connections, or more replicas; raise gateway.connections if the machine has room.",
    ),
    "too_slow": Reason(
        "deadline_exceeded",
        False,
        "The request's head or body did not come in time.",
        "Send it faster; look for what holds it up on the way.",
    ),
    "tool_not_found": Reason("not_found", False, "No tool has this name.", "List the tools; mind the spelling."),
    # leadership
    "not_active": Reason(
        "unavailable",
        True,
        "This instance is a standby; the details name the leader where it is known.",
        "Ask the leader: `ask_leader` does so, with backoff, while the leadership changes.",
    ),
    "leadership_lost": Reason(
        "conflict",
        False,
        "The term of this member has ended, and what ran in it was cancelled.",
        "Nothing to do here: whoever leads now goes on. Look for pauses and an unreachable store if it is frequent.",
    ),
    "execution_error": Reason(
        "internal",
        False,
        "The leader's handler raised an exception; its type, code and reason are in the details.",
        "Read them; mend the handler or the request. Not asked again by itself.",
    ),
    # key-value storage
    "term_old": Reason(
        "conflict",
        False,
        "The write shows a term that is older than one seen before: somebody else leads by now.",
        "Stop acting; campaign again for a new term.",
    ),
    "outcome_unknown": Reason(
        "deadline_exceeded",
        False,
        "The answer to a write was lost, and what it wrote cannot be told from what was written since.",
        "Read the present state and decide anew.",
    ),
    # the bus
    "no_responder": Reason(
        "unavailable",
        False,
        "Nobody serves this method, or this instance of the service is gone.",
        "Start the service, or mend the names of service, method and instance.",
    ),
    "bad_subject": Reason(
        "invalid_argument",
        False,
        "A name, subject or pattern of the bus has parts that it may not have.",
        "Use names of ASCII letters, digits, '_' and '-' joined by dots; '*' and a trailing '>' in patterns alone.",
    ),
    "subscription_differs": Reason(
        "failed_precondition",
        False,
        "A durable subscription of this name exists for another pattern.",
        "Choose another name, or delete the subscription that is there.",
    ),
    "too_many_calls": Reason(
        "resource_exhausted",
        True,
        "The instance handles as many calls as it may, and its queue of waiting calls is full.",
        "Try again later, start more instances, or raise concurrency.",
    ),
    "command_timeout": Reason(
        "deadline_exceeded",
        False,
        "The command was not done within its timeout.",
        "Allow more time, or find what its handlers wait for.",
    ),
    "command_cancelled": Reason(
        "failed_precondition", False, "The command was cancelled.", "Send it again if it was a mistake."
    ),
    "call_ended": Reason(
        "failed_precondition",
        False,
        "The handler's call ended, or was cancelled, before the bus had answered what the handler asked.",
        "Nothing waits for the answer any more; what was published or sent may have arrived.",
    ),
    # gateway and configuration
    "unknown_setting": Reason("invalid_argument", False, "No setting has this name.", "See the suggestion."),
    "missing_extra": Reason(
        "failed_precondition",
        False,
        "An optional package is not installed.",
        "Install the extra that is named.",
    ),
    "auth_required": Reason(
        "failed_precondition",
        False,
        "Binding beyond loopback needs authentication, which is not configured.",
        'Make a key with `groundplane keys create` and set `[gateway] auth = "keys"`, or bind 127.0.0.1 or ::1.',
    ),
    "unauthenticated": Reason(
        "permission_denied",
        False,
        "The request has no API key or token, or one that is not valid any more.",
        "Send `Authorization: Bearer …`; `groundplane keys create` makes a key.",
    ),
    "insufficient_scope": Reason(
        "permission_denied",
        False,
        "The API key or token does not have the scope that this needs.",
        "Use one with the scope that is named in the details.",
    ),
    "bad_token": Reason(
        "permission_denied",
        False,
        "The per-job token is missing or wrong.",
        "Use the token from the envelope's headers.",
    ),
    "key_not_found": Reason("not_found", False, "No API key has this id.", "Look at `groundplane keys list`."),
    "session_ended": Reason("not_found", False, "The MCP session has ended.", "Initialize another one."),
    "too_many_sessions": Reason(
        "resource_exhausted",
        False,
        "One caller has as many open sessions as anybody may have.",
        "End sessions that are not used, or wait until they expire.",
    ),
    "invalid_promql": Reason(
        "invalid_argument",
        False,
        "Prometheus does not understand the query.",
        "Mend the expression at the place that the message names.",
    ),
    "too_many_series": Reason(
        "resource_exhausted",
        False,
        "A metric would have more than 1,000 series.",
        "Use labels with few values; ids and paths belong into logs.",
    ),
    # services
    "no_instance": Reason(
        "unavailable",
        True,
        "No instance of the service is healthy.",
        "Start one; look with `groundplane services show NAME` at why those that are there are not.",
    ),
    "superseded": Reason(
        "failed_precondition",
        False,
        "A later registration of the same instance id has taken the entry.",
        "Give every instance an id of its own.",
    ),
    "lifecycle": Reason(
        "failed_precondition",
        False,
        "The service is in a state of its life that does not allow the step.",
        "Start it once, stop it once; make a new one to start again.",
    ),
    "service_defined": Reason(
        "already_exists", False, "The service is defined already.", "Change the definition instead (PUT)."
    ),
    "service_not_found": Reason(
        "not_found", False, "No definition of the service is there.", "List the services; mind the spelling."
    ),
    "instance_not_found": Reason(
        "not_found", False, "The service has no such instance, or not any more.", "List its instances."
    ),
    "queue_full": Reason("resource_exhausted", True, "A bounded buffer is full.", "Try again later, or send less."),
    "path_escape": Reason(
        "invalid_argument",
        False,
        "The key would leave the store's folder.",
        "Use a key without '..' segments.",
    ),
    "checksum_mismatch": Reason(
        "internal",
        False,
        "The stored bytes do not match their checksum.",
        "Restore the object from a backup.",
    ),
}
