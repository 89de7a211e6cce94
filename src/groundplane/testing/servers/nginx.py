"""nginx, as the reverse proxy that stands before a gateway; without an upstream it serves the files of its data folder.

Set as a proxy of streams must be: HTTP/1.1 to the upstream, nothing buffered, an hour until a silent one is cut off.
`GET /nginx-alive` answers 204 by itself. One worker; nothing is cached, so there is nothing to lose at a kill.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from groundplane.core.errors import InvalidArgument
from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import Place, Program, Server, Source
from groundplane.testing.servers.sources import Debian, version_of

_ADDRESS = re.compile(r"[\w.:\[\]-]+:\d+|unix:/[^\s;{}]+")
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Nginx(Server):
    """See the module."""

    name = "nginx"
    title = "nginx"
    accounts = ("www-data",)
    stop_timeout_s = 5.0
    options: ClassVar[Mapping[str, str]] = {
        "upstream": "Address (`host:port` or `unix:/path`) or several, to which requests go in turn.",
        "server": "Text that is added to the server block, for example another location.",
        "http": "Text that is added to the http block.",
    }

    def sources(self) -> Sequence[Source]:
        return [
            Debian(
                "nginx-light",
                version="1",
                programs={"nginx": "nginx"},
                read=lambda programs: version_of([str(programs["nginx"]), "-v"]),
                size_mb=4,
            )
        ]

    def launch(self, place: Place) -> Sequence[Program]:
        for name in _TEMPORARY:
            (place.folder / name).mkdir(exist_ok=True)
        path = place.folder / "nginx.conf"
        path.write_text(_configuration(place), encoding="utf-8")
        # -e: what goes wrong before the configuration is read goes to the log as well
        return [Program(argv=[place.program("nginx"), "-c", str(path), "-p", str(place.folder), "-e", "stderr"])]

    def check(self, place: Place) -> None:
        wire.expect(204, place.port, "/nginx-alive")

    def url(self, place: Place) -> str:
        return f"http://127.0.0.1:{place.port}"


def _configuration(place: Place) -> str:
    temporary = "\n".join(f"  {name}_temp_path {place.folder / name};" for name in _TEMPORARY)
    upstreams = _addresses(place.options.get("upstream", ()))
    pool = "".join(f" server {one} max_fails=0;" for one in upstreams)
    upstream = f"  upstream told {{{pool} keepalive 16; }}\n" if upstreams else ""
    return f"""daemon off;
worker_processes 1;
pid {place.folder / "nginx.pid"};
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
{temporary}
{upstream}  {place.options.get("http", "")}
  server {{
    listen 127.0.0.1:{place.port};
    location = /nginx-alive {{ return 204; }}
    location / {{
{_PROXY if upstreams else f"      root {place.data};"}
    }}
    {place.options.get("server", "")}
  }}
}}
"""


_PROXY = """      proxy_pass http://told;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 1h;
      client_max_body_size 0;"""


def _addresses(given: object) -> list[str]:
    listed: list[Any] = [given] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
    for one in listed:
        if not isinstance(one, str) or not _ADDRESS.fullmatch(one):
            raise InvalidArgument(f"upstream: {one!r} is neither host:port nor unix:/path")
    return listed


SERVER = Nginx()
