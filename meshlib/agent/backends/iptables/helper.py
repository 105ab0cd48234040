"""Helper: a process that runs iptables for an agent that has given up its capabilities.

The agent reads what others wrote, so it may do nothing to the host. Who runs programs with CAP_NET_ADMIN reads nothing
but frames of the agent, and runs nothing but iptables' own programs, with text that writes our chains and leads there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

import msgspec

from meshlib.agent.backends.iptables import programs
from meshlib.agent.backends.iptables.programs import Done
from meshlib.agent.broker.privileges import confine_runner
from meshlib.agent.broker.wire import Frames

_COMMAND = re.compile(r"ip6?tables(-nft|-legacy)?-(save|restore -w \d+ --noflush)")
#: All that iptables-restore may be told: our chains made, filled, removed, and rules in built-in ones that lead there.
_OURS = r"MESH(LIB|TRY)-[A-Za-z0-9-]+"
_LINE = re.compile(
    rf"\*(mangle|filter|nat)|COMMIT|:{_OURS} - \[0:0\]|-A {_OURS} [^\0]+|-X {_OURS}"
    rf"|-(D [A-Z]+|I [A-Z]+ 1) [^\0]*-j {_OURS}"
)
#: The words of our rules, as we write them and as iptables-save prints them. There are options that have a program run
#: (--modprobe) or files read: what is not here is refused.
_WORD = re.compile(r'"[^"\\]*"|[^\s"\\]+')
_OPTIONS = frozenset(
    [
        "-m",
        "-j",
        "-s",
        "-d",
        "-p",
        "--comment",
        "--ctstate",
        "--mark",
        "--set-xmark",
        "--dport",
        "--src-type",
        "--dst-type",
        "--mode",
        "--probability",
        "--name",
        "--update",
        "--set",
        "--seconds",
        "--reap",
        "--rsource",
        "--mask",
        "--to-destination",
        "--random-fully",
        "--reject-with",
    ]
)
_MATCHES = frozenset(
    ["comment", "conntrack", "mark", "addrtype", "recent", "statistic", "tcp", "udp", "sctp"]
)
_TARGETS = frozenset(["ACCEPT", "DNAT", "DROP", "MARK", "MASQUERADE", "REJECT", "RETURN"])
_KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG")
_MAIN = "import sys; from meshlib.agent.backends.iptables.helper import main; main(int(sys.argv[1]))"
#: Seconds that the helper has to end after its connection was closed.
_PATIENCE = 5.0
_SIZE = 1 << 20


class _Ask(msgspec.Struct, frozen=True):
    words: list[str]
    text: str


class _Answer(msgspec.Struct, frozen=True):
    code: int
    output: str
    error: str
    number: int = 0  #: errno of a program that could not be run


def refusal(words: Sequence[str], text: str) -> str:
    """Why this is not run; "" where it is. Pure."""
    if not _COMMAND.fullmatch(" ".join(words)):
        return f"no program of iptables: {' '.join(words)!r:.80}"
    strange = next((line for line in text.splitlines() if not _ours(line)), None)
    return f"no rule of ours: {strange!r:.80}" if strange is not None else ""


def _ours(line: str) -> bool:
    if not _LINE.fullmatch(line):
        return False
    if not line.startswith("-") or line.startswith("-X"):
        return True
    words = _WORD.findall(line)
    # Quotes anywhere else would hide an option; so would a word that another one runs into.
    if " ".join(words) != line:
        return False
    options = words[3 if words[0] == "-I" else 2 :]
    for before, word in zip(("", *options), options, strict=False):
        known = {
            "-m": word in _MATCHES,
            "-j": word in _TARGETS or re.fullmatch(_OURS, word) is not None,
            "--comment": True,
        }.get(before, word in _OPTIONS or word[0] not in '-"')
        if not known:
            return False
    return True


class Helper:
    """The process, and the way to it: an object to be called like ``programs.run``. For one thread at a time."""

    def __init__(self) -> None:
        """Raises OSError when no process can be started."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 our own interpreter and program
                [sys.executable, "-c", _MAIN, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT if name in os.environ},
                start_new_session=True,  # Ctrl-C in a terminal reaches both: it ends after the agent
            )
        self.pid = self._process.pid
        self._connection = ours
        self._bodies = _bodies(ours)

    def __call__(self, words: Sequence[str], text: str) -> Done:
        """Run it. Raises OSError where it cannot be run, EPIPE where the helper has gone."""
        self._connection.sendall(_frame(_Ask(list(words), text)))
        body = next(self._bodies, None)
        if body is None:
            raise OSError(errno.EPIPE, "the process that runs iptables has ended; its rules stay")
        answer = msgspec.msgpack.decode(body, type=_Answer)
        if answer.number:
            raise OSError(answer.number, answer.error)
        return Done(answer.code, answer.output, answer.error)

    def close(self) -> None:
        """It ends by itself, and is killed when it does not. Safe to call twice."""
        self._connection.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _frame(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, sys.byteorder) + body


def _bodies(connection: socket.socket) -> Iterator[bytes]:
    """Until the other side closes. Raises ValueError for what is no frame."""
    frames = Frames()
    while data := connection.recv(_SIZE):
        yield from frames.feed(data)


def serve(connection: socket.socket, run: programs.Run = programs.run) -> None:
    """Until the other side closes. Raises OSError, ValueError and msgspec's errors for what is no frame of ours."""
    for body in _bodies(connection):
        ask = msgspec.msgpack.decode(body, type=_Ask)
        why = refusal(ask.words, ask.text)
        if why:
            answer = _Answer(0, "", f"the helper does not run {why}", errno.EPERM)
        else:
            try:
                done = run(ask.words, ask.text)
                answer = _Answer(done.code, done.output, done.error)
            except OSError as error:
                answer = _Answer(0, "", error.strerror or str(error), error.errno or errno.EIO)
        connection.sendall(_frame(answer))


def main(descriptor: int) -> None:
    """The process' whole life, on the socket it was started with."""
    confine_runner()
    with (
        contextlib.suppress(BrokenPipeError, ConnectionResetError),
        socket.socket(fileno=descriptor) as connection,
    ):
        serve(connection)
    os._exit(0)
