"""StatusSocket: answers ``meshlib status`` over a local socket, on the control thread's loop.

One line in, ``{"endpoints": N}``; lines of JSON out: ``process``, then for every target ``target`` and its
``endpoints`` in pieces, ``end`` at last. Only the process's own user and root may ask. The answer is made while it is
sent, a piece at a time, so that neither a large Service nor a slow reader holds up the loop, the interpreter or memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from meshlib.model.events import EntrySkipped, EventSink, SourceFailed
from meshlib.runtime import report, status_place
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.observing import emit
from meshlib.runtime.process import ProcessRuntime
from meshlib.runtime.report_form import EndpointReport

#: Bytes of a request: one small object.
MAX_REQUEST = 4096
#: Seconds for one question and its whole answer. 10,000 endpoints take well below one; a reader that needs more is
#: stuck, or means no good.
ANSWER_SECONDS = 10.0
#: Readers at a time; each may hold one piece and the kernel's buffer. People ask, and ``meshlib top`` once a second.
MAX_READERS = 8
#: Connections that wait for the loop to accept them.
BACKLOG = 16
#: Bytes of an answer: several times 10,000 endpoints. What is beyond is left out, and the answer says so.
MAX_ANSWER = 16 << 20
#: Seconds without accepting anybody while the process has no descriptor left.
REST = 1.0
#: Endpoints in one piece: made and encoded in less than a millisecond.
PIECE = 250
#: Sockets of others that are looked at when ours is made; a program that is killed all the time leaves more than
#: ``meshlib status`` may ever come to see.
SWEEP = 64

RunBlocking = Callable[..., Awaitable[Any]]


class Spawn(Protocol):
    """Starts a task whose exceptions are reported."""

    def __call__(self, coroutine: Coroutine[Any, Any, None], /, *, name: str) -> asyncio.Task[Any]: ...


class StatusSocket:
    """Belongs to one ProcessRuntime; everything runs on its loop. In a forked child it is forgotten with it."""

    def __init__(self, setting: str, spawn: Spawn, run_blocking: RunBlocking, emit: EventSink) -> None:
        self.address: Path | bytes | None = None  #: where it listens; bytes: outside the file system
        self.readers: set[asyncio.Task[Any]] = set()  #: whose question is being answered
        self._setting = setting
        self._spawn = spawn
        self._run_blocking = run_blocking
        self._emit = emit
        self._listening: socket.socket | None = None
        self._resting: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Listen in the first place that will do. Where there is none, that is reported once and nothing else lacks."""
        problems: list[str] = []
        self._listening = self._bind(problems)
        if self._listening is None:
            where = "; ".join(problems)
            self._emit(EntrySkipped("configuration", "status_socket", f"no place for a socket: {where}"))
            return
        self._listen()

    async def close(self) -> None:
        """Stop listening, end the answers under way and take the socket away."""
        if self._resting is not None:
            self._resting.cancel()
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        self.take_away()
        for task in tuple(self.readers):
            task.cancel()
        await asyncio.gather(*self.readers, return_exceptions=True)

    def take_away(self) -> None:
        """Remove the name, so that nobody comes any more. From any thread."""
        address, self.address = self.address, None
        if isinstance(address, Path):
            with contextlib.suppress(OSError):  # somebody was faster, or took the directory away
                address.unlink()

    # -- listening -----------------------------------------------------------------------------------------------

    def _bind(self, problems: list[str]) -> socket.socket | None:
        uid, name = os.geteuid(), status_place.new_name(os.getpid())
        for parent in status_place.parents(self._setting, os.environ):
            directory = status_place.directory(parent, uid)
            try:
                with contextlib.suppress(FileExistsError):
                    directory.mkdir(0o700)
                if problem := status_place.distrust(directory, uid):
                    problems.append(f"{directory}: {problem}")
                    continue
                listening = _listen(directory / name)
            except OSError as error:
                problems.append(f"{directory}: {error.strerror or error}")
                continue
            self.address = directory / name
            _sweep(directory)
            return listening
        if self._setting == status_place.AUTO and hasattr(socket, "SO_PEERCRED"):
            address = status_place.abstract_address(uid, name)
            try:
                listening = _listen(address)
            except OSError as error:
                problems.append(f"a name outside the file system: {error.strerror or error}")
                return None
            self.address = address
            return listening
        return None

    # -- answering -----------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        self._resting = None
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        # Not asyncio's server: its connections are nobody's for a few turns of the loop, and a loop that ends then
        # leaves them open.
        if self._listening is None:
            return
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # whoever asked has gone
        except OSError:  # no descriptor to be had: those who wait would have us turn in circles
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listening)
            self._resting = loop.call_later(REST, self._listen)
            return
        connection.setblocking(False)
        refused = self._refuse(connection)  # now: of many that come at once, the first are served
        task = self._spawn(self._serve(connection, refused), name="status")
        self.readers.add(task)

        def ended(task: asyncio.Task[Any]) -> None:
            self.readers.discard(task)
            connection.close()  # it may have ended before it began

        task.add_done_callback(ended)

    async def _serve(self, connection: socket.socket, refused: str) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_REQUEST)
                writer.transport.set_write_buffer_limits(high=0)  # drain returns when the kernel has it all
                if refused:
                    writer.write(_line(error=refused))
                else:
                    await self._converse(reader, writer)
                await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # whoever asked has gone, is stuck, or asked for nothing: there is nobody to tell
        except Exception as error:  # a fault of ours, or of a plugin: the reader sees the answer end
            self._emit(SourceFailed("status socket", error, stale=True))
        finally:
            if writer is not None:
                writer.transport.abort()  # what a reader did not take is dropped; what the kernel has it still gets

    def _refuse(self, connection: socket.socket) -> str:
        peer = status_place.peer_of(connection)
        if peer is not None and peer.uid not in (0, os.geteuid()):
            return f"user {peer.uid} may not ask a process of user {os.geteuid()}"
        if len(self.readers) >= MAX_READERS:
            return f"{MAX_READERS} others are asking already"
        return ""

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        try:
            wanted = msgspec.json.decode(line, type=Question)
        except msgspec.MsgspecError as error:
            writer.write(_line(error=f"not a question: {error}"))
            return
        sent = 0
        async for piece in self._answer(wanted):
            if sent + len(piece) > MAX_ANSWER:
                writer.write(_line(cut=f"the answer is longer than {MAX_ANSWER >> 20} MiB"))
                break
            sent += len(piece)
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # drain alone does not let others go first
        writer.write(_line(end=True))

    async def _answer(self, wanted: Question) -> AsyncIterator[bytes]:
        owners = report.meshes()
        yield _line(process=report.describe_process(owners))
        for index, handle in report.handles(owners):
            found = report.describe_target(index, handle)
            yield _line(target=found)
            async for rows, left_out in self._rows(handle, found.requests, wanted):
                yield _line(endpoints=rows, left_out=left_out)

    async def _rows(
        self, handle: TargetHandle | report.HeldBack, requests: int, wanted: Question
    ) -> AsyncIterator[tuple[Sequence[EndpointReport], int]]:
        """Pieces of rows with the number of those that are left out, which is told with the last piece."""
        live = handle.live
        if live is None:
            return
        balancer, subchannels = live.balancer, live.balancer.subchannels
        shown = subchannels[: max(0, wanted.endpoints)]
        for begin in range(0, len(shown), PIECE):
            yield report.member_rows(balancer, shown[begin : begin + PIECE], requests, live.now()), 0
        left_out = len(subchannels) - len(shown)
        room = wanted.endpoints - len(shown)
        if room > 0 and wanted.others and report.has_others(balancer):
            # Walks all entries of all slices at once: not on the loop.
            others = await self._run_blocking(report.other_rows, balancer)
            for begin in range(0, min(room, len(others)), PIECE):
                yield others[begin : min(begin + PIECE, room)], 0
            left_out += max(0, len(others) - room)
        if left_out:
            yield (), left_out


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """``endpoints``: how many of each target are to be listed. ``others``: also those that may not receive traffic; to
    explain them costs a large Service as much time as a thousand requests."""

    endpoints: int = report.MAX_ENDPOINTS
    others: bool = True


def serve_status(runtime: ProcessRuntime, setting: str) -> None:
    """Have this process answer, unless it does or ``setting`` says not to (on the control loop)."""
    if runtime.status is not None or setting == status_place.OFF or not hasattr(socket, "AF_UNIX"):
        return
    runtime.status = status = StatusSocket(setting, runtime.control.spawn, runtime.control.run_blocking, emit)
    runtime.control.at_close(status.close)
    status.start()


def _listen(address: Path | bytes) -> socket.socket:
    path = os.fsencode(address) if isinstance(address, Path) else address
    if len(path) > status_place.MAX_PATH:
        raise OSError(f"the path has more than {status_place.MAX_PATH} bytes")
    listening = socket.socket(socket.AF_UNIX)
    try:
        with contextlib.suppress(
            OSError
        ):  # not on every system; the directory is closed to others in any case
            os.fchmod(listening.fileno(), 0o600)
        listening.bind(path)
        if isinstance(address, Path):
            address.chmod(0o600)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _sweep(directory: Path) -> None:
    """Remove sockets that processes left which ended without a word. Leaves to ``meshlib status`` what takes longer."""
    wall = SYSTEM.wall()
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry, _ in zip(entries, range(SWEEP), strict=False):
            pid = status_place.pid_of(entry.name)
            path = Path(entry.path)
            if pid is not None and not _is_there(pid) and status_place.is_dead(path, wall):
                with contextlib.suppress(OSError):
                    path.unlink()


def _is_there(pid: int) -> bool:
    """Whether we see a process of that number: most likely the socket's, which need not be disturbed."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _line(**content: object) -> bytes:
    return msgspec.json.encode(content, enc_hook=str) + b"\n"
