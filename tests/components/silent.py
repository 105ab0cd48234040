"""An address that answers no packets, without a firewall: a listener whose queue of connections is full drops SYNs."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent_address(host: str = "127.0.0.1") -> Iterator[str]:
    """``HOST:PORT``; connecting to it hangs until the block ends."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, 0), backlog=0))
        address = listener.getsockname()
        for _ in range(8):  # one fits, by listen(2); some kernels take one or two more
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0.2)
            try:
                waiting.connect(address)
            except TimeoutError:
                break
        else:
            raise RuntimeError("the listener's queue takes connections without end")
        yield f"{host}:{address[1]}"
