"""``meshlib agent run`` as a process in a network namespace."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meshlib.agent.ops.control import ControlRefused, ask
from meshlib.agent.state import CONTROL, LEDGER
from tests.components.process import Daemon, program, wait_for
from tests.kernel.lab.net import POD_RANGE

ROOT = Path(__file__).parents[3]


class AgentProcess:
    """Starts and ends as often as one likes; its ledger and its rules stay in between."""

    def __init__(
        self,
        space: str,
        folder: Path,
        *options: str,
        env: Mapping[str, str] = {},
        node: str = "node-a",
        prepare: str = "",
        **settings: object,
    ) -> None:
        """``options``: of the command itself; ``prepare``: a shell command before it, in a mount namespace of its own.
        ``settings`` go through ``--set``."""
        self._enter = [program("ip"), "netns", "exec", space]
        self.state = folder / "state"
        found = {"mode": "nftables", "node_name": node, "pod_cidrs": POD_RANGE, **settings}
        command = [sys.executable, "-m", "meshlib", "agent", "run", "--state", str(self.state), *options]
        for key, value in found.items():
            command += ["--set", f"{key}={value}"]
        if prepare:
            command = ["unshare", "-m", "sh", "-ec", f'{prepare}\nexec "$@"', "sh", *command]
        self._args = [*self._enter, *command]
        # Nothing of what this process was started with tells the agent where its cluster is.
        self._env = {
            **{
                key: value
                for key, value in os.environ.items()
                if key != "KUBECONFIG" and not key.startswith(("KUBERNETES_", "MESHLIB_"))
            },
            "PYTHONPATH": str(ROOT),
            **env,
        }
        self.daemon = Daemon("agent", self._args, folder, self._env)

    def __enter__(self) -> AgentProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.stop(20)

    def start(self) -> None:
        """Until everything is in the kernel."""
        self.daemon.start()
        self.daemon.wait_until(self.synced, 60)

    def restart(self, *, politely: bool) -> None:
        """The end by SIGTERM or by SIGKILL, and a new beginning."""
        if politely:
            self.daemon.stop(20)
        else:
            self.daemon.kill()
        self.start()

    def second(self) -> subprocess.CompletedProcess[str]:
        """The same once more, to its end."""
        return subprocess.run(
            self._args, env=self._env, capture_output=True, text=True, timeout=60, check=False
        )

    def cleanup(self) -> None:
        """`meshlib agent cleanup`, with the same state; the agent itself is stopped."""
        words = [sys.executable, "-m", "meshlib", "agent", "cleanup", "--state", str(self.state)]
        done = subprocess.run(
            [*self._enter, *words], env=self._env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def ask(self, command: str = "status") -> Mapping[str, Any]:
        """Over the control socket. Raises ControlRefused."""
        return asyncio.run(ask(self.state / CONTROL, command))

    def synced(self) -> bool:
        """Whether everything that it knows is in the kernel."""
        try:
            found = self.ask()
        except ControlRefused:
            return False
        return bool(found["synced"]) and found["pending_seconds"] is None

    def family(self, number: int = 4) -> Mapping[str, Any]:
        """What it says about one family."""
        found: Mapping[str, Any] = self.ask()["families"][f"IPv{number}"]
        return found

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.state / LEDGER

    def children(self) -> Sequence[int]:
        """Its processes: the programmer."""
        found = Path(f"/proc/{self.daemon.pid}/task/{self.daemon.pid}/children").read_text()
        return [int(each) for each in found.split()]

    def rules(self) -> str:
        """The namespace's tables as nft shows them."""
        return self.run("nft", "list", "ruleset")

    def run(self, *command: str) -> str:
        """A program in the agent's namespace; its output. Fails when it does."""
        done = subprocess.run([*self._enter, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def wait_rules(self, *, have: Sequence[str] = (), lack: Sequence[str] = ()) -> None:
        """Until these texts are in the node's tables, and those are not."""

        def there() -> bool:
            words = set(self.rules().replace(",", " ").split())
            return words.issuperset(have) and words.isdisjoint(lack)

        wait_for(there, timeout=60, interval=0.1, what=f"{have} without {lack}\n{self.daemon.tail()}")
