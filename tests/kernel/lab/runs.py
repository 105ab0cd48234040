"""Programs on the lab's node: what the iptables backend runs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from meshlib.agent.backends.iptables.programs import Done
from tests.kernel.lab.lab import Lab


class Runs:
    """Runs programs on the lab's node, and counts them."""

    def __init__(self, lab: Lab) -> None:
        self._prefix = ["ip", "netns", "exec", lab.network.spaces["node"]]
        self.words: list[Sequence[str]] = []

    def __call__(self, words: Sequence[str], text: str) -> Done:
        self.words.append(words)
        done = subprocess.run(
            [*self._prefix, *words], input=text, capture_output=True, text=True, timeout=120, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)
