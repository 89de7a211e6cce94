"""The names of the servers and the modules that declare them, as strings: reading this imports nothing else."""

from __future__ import annotations

MODULES: dict[str, str] = {
    "postgres": "postgres",
    "redis": "redis",
    "rabbitmq": "rabbitmq",
    "nats": "nats",
    "s3": "s3",
    "smtp": "smtp",
    "etcd": "etcd",
    "kafka": "kafka",
    "milvus": "milvus",
    "prometheus": "prometheus",
    "pushgateway": "pushgateway",
    "alertmanager": "alertmanager",
    "kubernetes": "kubernetes",
    "nginx": "nginx",
    "otlp": "otlp",
    "oidc": "oidc",
}
LIGHT = ("postgres", "redis", "rabbitmq", "nats", "s3", "smtp", "etcd")
"""What `groundplane servers up` without names starts."""
