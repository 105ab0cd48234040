"""HAProxy and nginx as a local sidecar: one process between a client and HTTP/1.1 backends, with kept connections.

Each is configured as its documentation advises for this job, without a log of requests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.components.process import Daemon, can_connect, free_port, program

_HAPROXY = """
global
  maxconn 4096
  nbthread 1
defaults
  mode http
  http-reuse always
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend sidecar
  bind 127.0.0.1:{port}
  default_backend pods
backend pods
  balance roundrobin
{servers}
"""
_NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 100000000;
  upstream pods {{
{servers}
    keepalive 256;
    keepalive_requests 100000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      proxy_pass http://pods;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
"""
#: name: (program, its Debian package, configuration, a line per backend, its command line)
KINDS = {
    "HAProxy": ("haproxy", "haproxy", _HAPROXY, "  server s{number} {address}", ["-db", "-f"]),
    "nginx": ("nginx", "nginx-light", _NGINX, "    server {address};", ["-c"]),
}


class Sidecar:
    """``with Sidecar("nginx", addresses) as url``: listens on loopback. Raises NotAvailable."""

    def __init__(self, kind: str, addresses: Sequence[str]) -> None:
        name, package, text, line, arguments = KINDS[kind]
        path = program(name, package=package)
        self._folder = tempfile.TemporaryDirectory(prefix="meshlib-sidecar-")
        folder = Path(self._folder.name)
        self._port = free_port()
        servers = "\n".join(line.format(number=n, address=address) for n, address in enumerate(addresses))
        config = folder / f"{name}.conf"
        config.write_text(text.format(port=self._port, servers=servers, folder=folder))
        self._daemon = Daemon(name, [path, *arguments, str(config)], folder)

    def __enter__(self) -> str:
        try:
            self._daemon.start()
            self._daemon.wait_until(lambda: can_connect("127.0.0.1", self._port))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return f"http://127.0.0.1:{self._port}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._daemon.stop()
        self._folder.cleanup()
