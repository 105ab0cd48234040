"""Starting the programmer's process: before the parser reads anything, and with an environment of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import AbstractContextManager

from meshlib.agent.broker.client import Broker

#: What Python itself needs; nothing else of the parser's environment reaches the programmer.
_KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG")
_PROGRAM = "import sys; from meshlib.agent.broker.programmer import main; main(int(sys.argv[1]))"
#: Seconds that the programmer has to end after its connection was closed.
_PATIENCE = 5.0


class ProgrammerProcess:
    """The process and the way to it."""

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        """Raises OSError when no process can be started."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        #: Readable as soon as the process has ended, however that went: it holds the other end of a pipe.
        self.ended, held = os.pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 our own interpreter and program
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                pass_fds=(theirs.fileno(), held),
                stdin=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT if name in os.environ},
                # Ctrl-C in a terminal reaches both: the programmer ends with the parser, not before it.
                start_new_session=True,
            )
        os.close(held)
        self.broker = Broker(ours, lock)
        self.pid = self._process.pid

    def close(self) -> None:
        """The process ends by itself, and is killed when it does not. Once."""
        self.broker.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self.ended)
