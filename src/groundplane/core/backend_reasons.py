"""The reasons of what Groundplane stands on: the embedded engine, object stores, NATS. Part of `core.reasons`."""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """One row: the code that the reason comes with, whether trying again can help, what it means, what to do."""

    code: str
    retryable: bool
    meaning: str
    remedy: str


BACKEND_REASONS: dict[str, Reason] = {
    # the embedded engine
    "foreign_database": Reason(
        "failed_precondition",
        False,
        "The file is not a Groundplane database.",
        "Choose another state folder, or move the file away.",
    ),
    "schema_newer": Reason(
        "failed_precondition",
        False,
        "The data was written by a newer Groundplane.",
        "Upgrade Groundplane, or use the data's own version.",
    ),
    "schema_old": Reason(
        "failed_precondition", False, "The data has an older schema.", "Run `groundplane db upgrade`."
    ),
    "schema_changed": Reason(
        "failed_precondition",
        False,
        "An applied migration differs from the one that is shipped.",
        "Restore the released files; never edit a released migration.",
    ),
    "server_too_old": Reason(
        "failed_precondition", False, "The server or library is older than the least version.", "Upgrade it."
    ),
    "database_busy": Reason(
        "unavailable",
        True,
        "Another process holds the write lock for too long.",
        "Look for a stopped process of this plane (`groundplane doctor`).",
    ),
    "disk_full": Reason(
        "resource_exhausted", True, "The disk is full.", "Free space; nothing that was acknowledged is lost."
    ),
    "server_exhausted": Reason(
        "resource_exhausted",
        True,
        "The database server has no connection, memory or other resource left.",
        "Raise its limit (`max_connections`), or lower `pool_max` in the URL.",
    ),
    "io_error": Reason(
        "unavailable", False, "The operating system refused to read or write the file.", "Look at the disk and its log."
    ),
    "database_corrupt": Reason(
        "failed_precondition",
        False,
        "The database file is damaged.",
        "Restore it from a backup; keep the damaged file.",
    ),
    "database_replaced": Reason(
        "failed_precondition",
        False,
        "The database file was moved or replaced while it was open.",
        "Stop the plane before files are moved; start it again.",
    ),
    "read_only": Reason("permission_denied", False, "The state folder cannot be written.", "Mend its permissions."),
    "forked": Reason(
        "failed_precondition",
        False,
        "The database was opened before a fork.",
        "Open it in the child process.",
    ),
    # the object store
    "bucket_not_found": Reason(
        "not_found",
        False,
        "The bucket does not exist.",
        "Mind the spelling. A store of objects: `aws s3 mb s3://BUCKET`, or `create=true` in the URL; keys: put one.",
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
    # NATS
    "not_connected": Reason(
        "unavailable",
        True,
        "There is no connection to NATS now; nothing was sent.",
        "Start the server; it reconnects by itself.",
    ),
    "jetstream_unavailable": Reason(
        "unavailable",
        True,
        "JetStream, or the stream's leader, does not answer now.",
        "Wait for the election or the start; look at the server's log.",
    ),
    "jetstream_disabled": Reason(
        "failed_precondition",
        False,
        "JetStream is not enabled on the server or for the account.",
        "Add `jetstream {}` to the server's configuration, or enable it for the account.",
    ),
    "jetstream_error": Reason(
        "unavailable", True, "JetStream failed inside.", "Read the server's log; look at its disk."
    ),
    "jetstream_config": Reason(
        "invalid_argument",
        False,
        "JetStream does not take the settings of the stream or consumer.",
        "Read the server's words in the details.",
    ),
    "stream_not_found": Reason("not_found", False, "The stream does not exist.", "Start the plane that makes it."),
    "consumer_not_found": Reason("not_found", False, "The consumer does not exist.", "Subscribe again."),
    "message_not_found": Reason(
        "not_found", False, "The stream has no such message (any more).", "It was deleted, or has expired."
    ),
    "stream_exists_differently": Reason(
        "failed_precondition",
        False,
        "A stream or consumer of this name exists with other settings.",
        "Use another plane's name, or delete it.",
    ),
    "subjects_overlap": Reason(
        "failed_precondition",
        False,
        "Another stream takes some of the subjects.",
        "Use another plane's name, or delete the other stream.",
    ),
    "wrong_sequence": Reason(
        "conflict", False, "Somebody wrote to the subject meanwhile.", "Read it again, and decide anew."
    ),
    "wrong_stream": Reason("conflict", False, "The subject belongs to another stream.", "Mend the expected stream."),
    "stream_full": Reason(
        "resource_exhausted", True, "The stream is at its limit.", "Consume or purge it, or raise its limit."
    ),
    "stream_sealed": Reason("failed_precondition", False, "The stream takes no changes any more.", "Use another one."),
    "too_many_requests": Reason(
        "resource_exhausted", True, "The server has too many requests of this kind under way.", "Ask less often."
    ),
    "ttl_invalid": Reason("invalid_argument", False, "NATS does not take this TTL.", "Use whole seconds, at least 1."),
    "ttl_disabled": Reason("unsupported", False, "The stream has no TTL per message.", "Open the bucket with TTL."),
    "batch_disabled": Reason("unsupported", False, "The stream takes no atomic batches.", "Make it with allow_atomic."),
    "batch_incomplete": Reason(
        "unavailable", True, "Part of an atomic batch was lost; nothing of it was stored.", "Send it again."
    ),
    "contended": Reason(
        "unavailable", True, "Others changed the same keys in each attempt; nothing was written.", "Try again later."
    ),
    "not_a_cluster": Reason(
        "failed_precondition",
        False,
        "The server, or its cluster, has fewer nodes up than the replicas that are asked for.",
        "Start or add nodes, or use replicas=1.",
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
