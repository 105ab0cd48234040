"""WSGI and ASGI applications on loopback, so that a request to them takes the way that it takes to a pod."""

from __future__ import annotations

import inspect
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

#: Seconds that an application may take to start (its lifespan) and to stop. Longer is a hang, not patience.
START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """No access log on the tests' stderr."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # Without the base class's look-up of the host's full name, which asks DNS.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]
        self.setup_environ()


class ServedApp:
    """One application on a free port of 127.0.0.1 until ``close``. ``address`` is ``127.0.0.1:PORT``.

    WSGI is served by the standard library, ASGI by uvicorn, which must be installed (without WebSockets).
    """

    def __init__(self, app: Any) -> None:
        port, self._stop = (_serve_asgi if is_asgi(app) else _serve_wsgi)(app)
        self.address = f"127.0.0.1:{port}"

    def close(self) -> None:
        self._stop()


def is_asgi(app: Any) -> bool:
    """ASGI 3 applications are coroutine functions, or objects whose call is one."""
    call = app if inspect.isfunction(app) or inspect.ismethod(app) else type(app).__call__
    return inspect.iscoroutinefunction(call)


def _serve_wsgi(app: Any) -> tuple[int, Callable[[], None]]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.set_app(app)
    # polled that often for the end, seconds: what a test waits for its servers
    thread = threading.Thread(
        target=server.serve_forever, args=(0.02,), name="meshlib-test-wsgi", daemon=True
    )
    thread.start()

    def stop() -> None:
        server.shutdown()
        thread.join(STOP_TIMEOUT)
        server.server_close()

    return server.server_port, stop


def _serve_asgi(app: Any) -> tuple[int, Callable[[], None]]:
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError(
            "an ASGI application is served by uvicorn, which is not installed: pip install uvicorn"
        ) from error
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", loop="asyncio")
    server = uvicorn.Server(config)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            server.run(sockets=[listener])
        except BaseException as error:  # told to the test, which waits for the start below
            failed.append(error)

    thread = threading.Thread(target=run, name="meshlib-test-asgi", daemon=True)
    thread.start()
    deadline = time.monotonic() + START_TIMEOUT
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            server.should_exit = True
            listener.close()
            raise RuntimeError(f"the ASGI application {app!r} did not start") from next(iter(failed), None)
        time.sleep(0.005)

    def stop() -> None:
        server.should_exit = True
        thread.join(STOP_TIMEOUT)
        with suppress(OSError):
            listener.close()

    return listener.getsockname()[1], stop
