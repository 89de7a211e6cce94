"""The reasons that name what a server outside did: a broker, an object store, a cluster. Rows of `core.reasons`."""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """One row: the code that the reason comes with, whether trying again can help, what it means, what to do."""

    code: str
    retryable: bool
    meaning: str
    remedy: str


OF_SERVERS: dict[str, Reason] = {
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
        "The peer sent bytes that are no valid AMQP 0-9-1.",
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
    # the object store
    "bucket_not_found": Reason(
        "not_found",
        False,
        "The bucket does not exist.",
        "Create it (`aws s3 mb s3://BUCKET`, or `create=true` in the URL), or mend the URL.",
    ),
    "store_unreachable": Reason(
        "unavailable",
        True,
        "The object store takes no connection, broke one, or does not answer.",
        "Start it; mend `endpoint` in the URL.",
    ),
    "store_error": Reason(
        "unavailable", True, "The object store failed inside (HTTP 5xx).", "Read the store's log; try again later."
    ),
    "store_busy": Reason(
        "resource_exhausted", True, "The object store asks for fewer requests.", "Try again later, with fewer at once."
    ),
    "store_keys_refused": Reason(
        "permission_denied",
        False,
        "The object store does not know the access key, or the secret is wrong or expired.",
        "Mend them in the URL, or in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    ),
    "store_access_refused": Reason(
        "permission_denied",
        False,
        "The credentials may not do this in the bucket.",
        "Allow it in the bucket's or the user's policy.",
    ),
    "clock_skew": Reason(
        "failed_precondition",
        False,
        "This machine's clock and the server's are too far apart.",
        "Set the clock (NTP) of the machine that is wrong.",
    ),
    # the cluster (Kubernetes)
    "cluster_config": Reason(
        "failed_precondition",
        False,
        "There is no configuration of a cluster, or it cannot be used.",
        "Run in a pod with a service account, set KUBECONFIG, or write kubernetes://USER:TOKEN@HOST:PORT/NAMESPACE.",
    ),
    "cluster_unreachable": Reason(
        "unavailable", True, "The API server takes no connection.", "Start it; mend host and port."
    ),
    "cluster_silent": Reason(
        "unavailable",
        True,
        "The API server takes connections and does not answer in time.",
        "Look at its load and at the network; a watch reconnects by itself.",
    ),
    "cluster_error": Reason(
        "unavailable",
        True,
        "The API server failed inside (HTTP 5xx), or what answers is none.",
        "Look at the API server's log and its etcd; mend host and port.",
    ),
    "cluster_busy": Reason(
        "resource_exhausted", True, "The API server asks for fewer requests (HTTP 429).", "Try again later."
    ),
    "cluster_login_refused": Reason(
        "permission_denied",
        False,
        "The API server does not take the token or certificate (HTTP 401).",
        "Mend it in the URL, the kubeconfig or the pod's service account.",
    ),
    "cluster_access_refused": Reason(
        "permission_denied",
        False,
        "The user or service account may not do this in the namespace (HTTP 403).",
        "Give it a Role with the verbs list and watch on endpointslices of discovery.k8s.io, and a RoleBinding.",
    ),
    "version_expired": Reason(
        "failed_precondition",
        False,
        "The cluster's state at that version is gone (HTTP 410): it was compacted.",
        "Nothing to do: it is listed again.",
    ),
}
