"""The ledger's file: locked against a second agent, appended durably, compacted by replacement."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from meshlib.agent.engine.ledger import Ledger
from meshlib.errors import MeshError


class AgentRunning(MeshError):
    """Another agent works on this node (it holds the ledger's lock)."""


class LedgerFile:
    """One thread at a time. The lock is held until ``close`` or the end of the process, however it ends."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Raises AgentRunning when another process holds the ledger, OSError when the folder cannot be written."""
        self.path = path
        self.ledger = Ledger()
        self._lock = -1
        self._file = -1
        self._behind = False  # a write failed: the file says less than the ledger, or ends in half a line
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                raise AgentRunning(
                    f"another meshlib agent runs on this node: it holds {path.with_suffix('.lock')}. "
                    "Stop it first, or look at it with `meshlib agent status`"
                ) from None
        with contextlib.suppress(FileNotFoundError):
            self.ledger.read(path.read_bytes())
        if not read_only:
            self._replace()

    def write(self, lines: bytes) -> None:
        """Append, durably; afterwards the objects may be made. Raises OSError. What a failed write left out comes with
        the next one, whatever its lines: the ledger does not give them a second time."""
        if not lines and not self._behind:
            return
        behind, self._behind = self._behind, True
        if behind or self.ledger.needs_compaction:
            self._replace()  # what the lines say is in the ledger already
        else:
            view = memoryview(lines)
            while view:
                view = view[os.write(self._file, view) :]
            os.fdatasync(self._file)
        self._behind = False

    def close(self) -> None:
        """Let go of the lock; the file stays."""
        for number in (self._file, self._lock):
            if number >= 0:
                os.close(number)
        self._file = self._lock = -1

    def _replace(self) -> None:
        new = self.path.with_suffix(".new")
        number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(self.ledger.compact())
            while view:
                view = view[os.write(number, view) :]
            os.fsync(number)
            os.replace(new, self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except BaseException:
            os.close(number)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file = number
