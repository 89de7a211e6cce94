"""The reverse proxy in front of the gateway: nginx, which asks for a password and speaks to the loopback.

The gateway knows no callers, so it binds the loopback of its container alone. This configuration is the least that
authenticates: basic authentication by a file of passwords, which is a secret. Without the file nginx refuses.
"""

from __future__ import annotations

from groundplane.deploy.plan import GATEWAY_PORT, PROXY_PORT

CONFIG = "/etc/nginx/nginx.conf"
PASSWORDS = "/etc/nginx/auth/htpasswd"
BODY_MAX = "16m"


def nginx_conf(
    *, listen: str = str(PROXY_PORT), upstream: str = f"127.0.0.1:{GATEWAY_PORT}", passwords: str = PASSWORDS,
    scratch: str = "/tmp",
) -> str:  # fmt: skip
    """The configuration. Streams are not buffered; `Origin` passes, so that pages of other sites stay refused."""
    return _CONF.format(listen=listen, upstream=upstream, passwords=passwords, scratch=scratch, body=BODY_MAX)


_CONF = """\
worker_processes 1;
pid {scratch}/nginx.pid;
error_log /dev/stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  server_tokens off;
  client_max_body_size {body};
  client_body_temp_path {scratch}/client_body;
  proxy_temp_path {scratch}/proxy;
  fastcgi_temp_path {scratch}/fastcgi;
  uwsgi_temp_path {scratch}/uwsgi;
  scgi_temp_path {scratch}/scgi;
  server {{
    listen {listen};
    location / {{
      auth_basic "groundplane";
      auth_basic_user_file {passwords};
      proxy_pass http://{upstream};
      proxy_http_version 1.1;
      proxy_set_header Host {upstream};
      proxy_set_header Authorization "";
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 3600s;
      proxy_send_timeout 3600s;
    }}
  }}
}}
"""
