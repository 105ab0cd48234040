"""The ledger's file when writing it fails: what is made afterwards must stand in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshlib.agent.engine import ledger_file
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.ledger_file import LedgerFile
from meshlib.agent.objects import ObjectKey

FIRST, SECOND = ObjectKey("service", ("TCP", "10.96.0.1", 80)), ObjectKey("service", ("TCP", "10.96.0.2", 80))


def half(number: int, data: Any) -> int:
    """A file system that becomes full in the middle of a line."""
    if len(data) < 2:
        raise OSError(errno.ENOSPC, "No space left on device")
    return os.write(number, bytes(data[: len(data) // 2]))


def never(number: int) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(("name", "fault"), [("write", half), ("fdatasync", never)])
def test_what_a_failed_write_left_out_comes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[..., Any]
) -> None:
    """The ledger gives its lines once; the next write, even one without lines, puts all of it into the file."""
    file = LedgerFile(tmp_path / "ledger")

    class Faulty:
        def __getattr__(self, wanted: str) -> Any:
            return fault if wanted == name else getattr(os, wanted)

    monkeypatch.setattr(ledger_file, "os", Faulty())
    with pytest.raises(OSError, match=r"space|error"):
        file.write(file.ledger.own([FIRST]))
    monkeypatch.undo()
    again = file.ledger.own([FIRST])
    assert again == b""
    file.write(again)
    assert LedgerFile(tmp_path / "ledger", read_only=True).ledger.owned == {FIRST}
    file.write(file.ledger.own([SECOND]))
    file.close()
    ledger = Ledger()
    ledger.read((tmp_path / "ledger").read_bytes())
    assert (ledger.owned, ledger.broken) == ({FIRST, SECOND}, 0)


def test_a_record_with_a_name_that_is_none() -> None:
    """Kept as one of another version, and no reason to stop."""
    ledger = Ledger()
    line = b'["+","service",{"a":1}]'
    ledger.read(line + b"\n")
    assert (ledger.owned, ledger.unknown) == (set(), [line])
