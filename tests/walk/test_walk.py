"""The walk, shortened: the same week with fewer requests, on the cluster that other tests use."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.components.process import NotAvailable, leave_out
from tests.walk.week import Week, walk

#: Requests of a day.
FEW = 60


@pytest.mark.timeout(300)
def test_monday_to_friday(kube_v1: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Off, observe, 5 %, on, the switch under load: each request is where it should be, and all books agree."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("the service gets a hosts file of its own: needs root and the program unshare")
    with tempfile.TemporaryDirectory(prefix="ms-") as place:
        try:
            week = Week(kube_v1, tmp_path, Path(place), print)
        except NotAvailable as error:
            leave_out("metrics", error)
        with week:
            walk(week, FEW)
    days = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[0] != " "]
    assert days == ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "The"]
