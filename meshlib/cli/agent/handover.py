"""``meshlib agent handover``: from kube-proxy to meshlib on one node, or back, one checked step after the other.

It programs nothing and stops nobody: it says what a person (or a rollout) has to do next, sees when it was done, and
counts connections that fail meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from meshlib.agent import coexist
from meshlib.agent.engine.ledger_file import LedgerFile
from meshlib.agent.engine.node import NodeEngine
from meshlib.agent.explain import parse_frontend
from meshlib.agent.netlink.socket import NETFILTER, NetlinkSocket
from meshlib.agent.ops.control import ControlRefused, ask
from meshlib.agent.state import CONTROL, LEDGER
from meshlib.agent.surroundings import read_chains
from meshlib.cli.agent import theirs
from meshlib.cli.agent.compare import compared, our_side
from meshlib.cli.agent.options import state_option
from meshlib.cli.exits import NEGATIVE, UNKNOWN
from meshlib.cli.output import visible
from meshlib.errors import MeshError

#: Seconds between two looks at a step, and between two connections of a probe.
LOOK, PROBE = 1.0, 0.1
#: Seconds that a probe's connection may take: longer than one lost packet (TCP sends again after 1 s).
PATIENCE = 3.0

#: Whether a step is done, and what is to be done, or was found.
Check = Callable[[], tuple[bool, str]]


@dataclass(slots=True)
class Probe:
    """Connections to one frontend, all the time."""

    address: str
    port: int
    made: int = 0
    failed: int = 0
    first: str = ""  #: why the first one failed
    _busy: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Until cancelled. Begins connections at a steady pace, however long each takes."""
        while True:
            task = asyncio.create_task(self._connect())
            self._busy.add(task)
            task.add_done_callback(self._busy.discard)
            await asyncio.sleep(PROBE)

    async def finish(self) -> None:
        """Those that are under way still count."""
        if self._busy:
            await asyncio.wait(self._busy)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                _, writer = await asyncio.open_connection(self.address, self.port)
            writer.close()
        except (OSError, TimeoutError) as error:
            self.failed += 1
            self.first = self.first or (str(error) or "no answer")
        self.made += 1


@click.group("handover")
def command() -> None:
    """Replace kube-proxy by meshlib on this node, or go back, without a gap.

    Programs nothing and stops nobody: says what to do next, and waits until it was done.
    """


def _options(function: Callable[..., None]) -> Callable[..., None]:
    function = click.option(
        "--probe",
        "probes",
        multiple=True,
        metavar="ADDRESS:PORT",
        help="Connect to this frontend all the time, and count what fails (TCP; can be repeated).",
    )(function)
    function = click.option(
        "--timeout", default=600.0, show_default=True, help="Seconds to wait for each step."
    )(function)
    return state_option(function)


@command.command("from-kube-proxy")
@_options
def from_kube_proxy(state: Path, timeout: float, probes: tuple[str, ...]) -> None:
    """kube-proxy serves this node, and meshlib shall.

    Exit codes: 0 done, no probe failed; 1 done, but probes failed; 3 a step was not done in time.
    """
    _go(
        [
            (
                "meshlib has everything in the kernel, beside kube-proxy's rules",
                lambda: _agent_takes_over(state),
            ),
            ("both lead to the same endpoints", lambda: _same_rules(state)),
            ("kube-proxy has stopped", _kube_proxy_stopped),
            ("kube-proxy's rules are gone", _kube_proxy_gone),
        ],
        timeout,
        probes,
    )
    click.echo("done: restart the agent without take_over, so that it notices a kube-proxy that comes back")


@command.command("to-kube-proxy")
@_options
def to_kube_proxy(state: Path, timeout: float, probes: tuple[str, ...]) -> None:
    """meshlib serves this node, and kube-proxy shall.

    Exit codes: 0 done, no probe failed; 1 done, but probes failed; 3 a step was not done in time.
    """
    _go(
        [
            ("kube-proxy runs", _kube_proxy_runs),
            ("both lead to the same endpoints", lambda: _same_rules(state)),
            ("the agent has stopped", lambda: _agent_stopped(state)),
            ("meshlib's rules are gone", lambda: _ours_gone(state)),
        ],
        timeout,
        probes,
    )


def _go(steps: Sequence[tuple[str, Check]], timeout: float, texts: Sequence[str]) -> None:
    try:
        probes = [Probe(key.address, key.port) for key in map(parse_frontend, texts)]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    done = asyncio.run(_steps(steps, timeout, probes))
    for probe in probes:
        line = f"{probe.address}:{probe.port}: {probe.made} connections, {probe.failed} failed"
        click.echo(visible(line + (f", the first: {probe.first}" if probe.first else "")))
    if not done:
        raise SystemExit(UNKNOWN)
    if any(probe.failed for probe in probes):
        raise SystemExit(NEGATIVE)


async def _steps(steps: Sequence[tuple[str, Check]], timeout: float, probes: Sequence[Probe]) -> bool:
    running = [asyncio.create_task(probe.run()) for probe in probes]
    try:
        for number, (title, check) in enumerate(steps, 1):
            if not await _wait(f"{number}/{len(steps)} {title}", check, timeout):
                return False
        return True
    finally:
        for task in running:
            task.cancel()
        for probe in probes:
            await probe.finish()


async def _wait(title: str, check: Check, timeout: float) -> bool:
    loop = asyncio.get_running_loop()
    ends = loop.time() + timeout
    told = ""
    while True:
        try:
            done, text = await asyncio.to_thread(check)
        except (MeshError, OSError) as error:
            done, text = False, str(error)
        if done:
            click.echo(visible(f"{title}: yes{f' ({text})' if text else ''}"))
            return True
        if text != told:
            told = text
            click.echo(visible(f"{title}: not yet. {text}"))
        if loop.time() >= ends:
            click.echo(f"{title}: not within {timeout:g} s", err=True)
            return False
        await asyncio.sleep(LOOK)


def _agent_takes_over(state: Path) -> tuple[bool, str]:
    how = (
        "Run it with take_over=true and mode=nftables (or iptables), and with a health_address and metrics_address "
        "that kube-proxy does not use (meshlib agent manifests --set ...)"
    )
    try:
        found = asyncio.run(ask(state / CONTROL, "status"))
    except ControlRefused as error:
        return False, f"{error}. {how}"
    if found["mode"] not in ("nftables", "iptables"):
        return (
            False,
            f"its mode is {found['mode']}: what removes kube-proxy's virtual servers removes its as well",
        )
    waiting = sum(family["pending"] + family["failures"] for family in found["families"].values())
    if not found["synced"] or waiting:
        return False, "the agent is not in sync yet: `meshlib agent status` tells why"
    return True, f"{sum(family['frontends'] for family in found['families'].values())} frontends"


def _same_rules(state: Path) -> tuple[bool, str]:
    def nobody() -> NodeEngine:
        raise ControlRefused("no agent is running here")

    sides = our_side(state, nobody)
    differing = []
    same = 0
    for family, mine in sides.items():
        by, found = compared(family, mine)
        same += found.same
        if by and found:
            parts = len(found.only_theirs) + len(found.only_ours) + len(found.other_endpoints)
            differing.append(f"IPv{family}: {parts} frontends differ")
    if differing:
        return False, f"{'; '.join(differing)}: `meshlib agent compare` lists them"
    return True, f"{same} frontends compared"


def _kube_proxy_runs() -> tuple[bool, str]:
    mode = coexist.running_mode()
    if mode:
        return True, f"mode {mode}"
    return False, "Let it run on this node: remove its node selector (it answers on 127.0.0.1:10249)"


def _kube_proxy_stopped() -> tuple[bool, str]:
    mode = coexist.running_mode()
    if not mode:
        return True, "nothing answers for it on 127.0.0.1:10249"
    return False, (
        "Take it from this node, for example by a label that its DaemonSet's node selector excludes:\n"
        "  kubectl label node NODE meshlib.dev/agent=yes\n"
        '  kubectl -n kube-system patch daemonset kube-proxy --type merge -p \'{"spec":{"template":{"spec":'
        '{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":'
        '[{"matchExpressions":[{"key":"meshlib.dev/agent","operator":"DoesNotExist"}]}]}}}}}}}\''
    )


def _kube_proxy_gone() -> tuple[bool, str]:
    left = (*coexist.traces(), *theirs.legacy_chains())
    if not left:
        return True, ""
    return False, (
        f"Still there: {'; '.join(left)}. kube-proxy removes them: run its image on this node once with --cleanup "
        "(hostNetwork, privileged). It flushes all virtual servers, also those of others"
    )


def _agent_stopped(state: Path) -> tuple[bool, str]:
    try:
        asyncio.run(ask(state / CONTROL, "status"))
    except ControlRefused:
        return True, "its rules stay until the next step"
    return (
        False,
        "Take the agent from this node (its DaemonSet's node selector, or systemctl stop meshlib-agent)",
    )


def _ours_gone(state: Path) -> tuple[bool, str]:
    ledger = LedgerFile(state / LEDGER, read_only=True)
    owned = len(ledger.ledger.owned)
    try:
        with NetlinkSocket(NETFILTER) as netlink:
            chains = sum(chain.table == "meshlib" for chain in read_chains(netlink))
    except OSError as error:
        return False, f"nf_tables cannot be read: {error}"
    if not owned and not chains:
        return True, ""
    return False, "Now: meshlib agent cleanup"
