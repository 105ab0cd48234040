"""The files of a running agent."""

from __future__ import annotations

from pathlib import Path

#: The state that must not outlive the kernel's: a tmpfs.
STATE_FOLDER = Path("/run/meshlib-agent")
LEDGER, CONTROL = "ledger", "control.sock"
