"""nginx before the gateways of a Compose file: asks them in turn, and the next one where one stops or is away.

Callers are known by the gateways themselves; the proxy keeps nothing and decides nothing. Its directives are those of
the how-to `behind-a-proxy`, with which rolling restarts are tested; a test compares them.
"""

from __future__ import annotations

from collections.abc import Sequence

from groundplane.deploy.plan import PROXY_PORT

CONFIG = "/etc/nginx/nginx.conf"
BODY_MAX = "16m"
RESOLVER = "127.0.0.11"
"""The name server of Compose's networks: a gateway that was made anew may have another address."""


def nginx_conf(
    upstreams: Sequence[str], *, listen: str = str(PROXY_PORT), scratch: str = "/tmp", resolver: str | None = RESOLVER
) -> str:
    """The configuration. `upstreams` are host and port of each gateway; `resolver` None: their names are looked up once
    (nginx before 1.27.3 can do no more).
    """
    again = "" if resolver is None else " resolve"
    servers = "\n".join(f"    server {one}{again} max_fails=0;" for one in upstreams)
    shared = "" if resolver is None else f"    zone groundplane 64k;\n    resolver {resolver} valid=2s;\n"
    return _CONF.format(servers=shared + servers, listen=listen, scratch=scratch, body=BODY_MAX)


_CONF = """\
worker_processes 1;
pid {scratch}/nginx.pid;
error_log /dev/stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  server_tokens off;
  client_body_temp_path {scratch}/client_body;
  proxy_temp_path {scratch}/proxy;
  fastcgi_temp_path {scratch}/fastcgi;
  uwsgi_temp_path {scratch}/uwsgi;
  scgi_temp_path {scratch}/scgi;
  upstream groundplane {{
{servers}
    keepalive 32;
  }}
  map $http_idempotency_key $once {{
    ""      $request_id;
    default $http_idempotency_key;
  }}
  server {{
    listen {listen};
    client_max_body_size {body};
    location / {{
      proxy_pass http://groundplane;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Connection "";
      proxy_set_header Idempotency-Key $once;
      proxy_buffering off;
      proxy_connect_timeout 2s;
      proxy_read_timeout 1h;
      proxy_next_upstream error timeout http_503 non_idempotent;
    }}
  }}
}}
"""
