"""Putting an agent together from its settings: ledger, backends, engine, source, pages."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, TypeVar

from meshlib.agent.backends.base import Backend
from meshlib.agent.compile.compiler import Compiler, DesiredChange
from meshlib.agent.engine.garbage import settle
from meshlib.agent.engine.guard import Guard
from meshlib.agent.engine.ledger_file import LedgerFile
from meshlib.agent.engine.leftovers import Departed, Leftovers, others
from meshlib.agent.engine.node import FamilyEngine, NodeEngine, Step
from meshlib.agent.engine.pace import Pace
from meshlib.agent.engine.programmer import Programmer
from meshlib.agent.engine.sweep import Sweep
from meshlib.agent.flows.forgetter import Forgetter
from meshlib.agent.modes import Chosen, Make
from meshlib.agent.netlink.ipvs import Timeouts
from meshlib.agent.netlink.socket import Make as MakeSocket
from meshlib.agent.netlink.socket import NetlinkSocket
from meshlib.agent.settings import AgentSettings, VipBinding
from meshlib.discovery.base import ResolverContext
from meshlib.discovery.kubernetes.credentials import SERVICE_ACCOUNT_DIR
from meshlib.errors import ConfigError
from meshlib.model.events import EventSink
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.control import DaemonExecutor

if TYPE_CHECKING:
    from meshlib.agent.backends.iptables.programs import Done, Run
    from meshlib.agent.backends.ipvs.part import Companion
    from meshlib.agent.backends.nftables.transaction import TransactionSocket

T = TypeVar("T")


def connector(make: MakeSocket | None = None) -> Callable[[int], NetlinkSocket]:
    """Opens netlink sockets of a protocol. ``make``: who makes them, where this process may not."""
    return lambda protocol: NetlinkSocket(protocol, make=make)


def run_here(words: Sequence[str], text: str) -> Done:
    """iptables' programs as children of this process."""
    from meshlib.agent.backends.iptables.programs import run

    return run(words, text)


def makers(
    settings: AgentSettings,
    make: MakeSocket | None = None,
    relays: Make | None = None,
    run: Run | None = run_here,
) -> Mapping[str, Make]:
    """How the backends of each mode are made. ``make``: who makes netlink sockets, where this process may not.
    ``relays``: who serves in userspace mode, where anybody does. ``run``: who runs iptables; None: nobody may, and
    there is no such mode.

    A backend's modules are loaded when its mode is tried: all of them together are a fifth of an agent's start.
    """

    def transactions() -> TransactionSocket:
        from meshlib.agent.backends.nftables.transaction import TransactionSocket

        return TransactionSocket(make)

    quiet = settings.silent_arp and settings.companion == "nftables"
    seconds = (settings.tcp_timeout, settings.tcp_fin_timeout, settings.udp_timeout)

    def ipvs(family: int) -> Backend:
        from meshlib.agent.backends.ipvs.backend import IpvsBackend
        from meshlib.agent.backends.ipvs.private import PrivateAddresses
        from meshlib.agent.backends.nftables.companion_table import CompanionTable

        private = PrivateAddresses(settings.private_cidr)
        beside: Companion | None = None
        if settings.companion == "nftables":
            beside = CompanionTable(family, private.key, connect=transactions)
        elif settings.companion == "iptables":
            from meshlib.agent.backends.iptables.companion import IptablesCompanion

            beside = IptablesCompanion(family, private.key, run or run_here)
        return IpvsBackend(
            binding=settings.vip_binding,
            drain_seconds=settings.drain_seconds,
            excluded=settings.exclude_cidrs,
            companion=beside,
            private=private,
            arp=transactions if family == 4 and quiet else None,
            timeouts=Timeouts(*map(ceil, seconds)),
            connect=connector(make),
        )

    def nftables(family: int) -> Backend:
        from meshlib.agent.backends.nftables.backend import NftablesBackend

        return NftablesBackend(family, connect=transactions)

    def iptables(family: int) -> Backend:
        from meshlib.agent.backends.iptables.backend import IptablesBackend

        return IptablesBackend(family, run or run_here)

    def userspace(family: int) -> Backend:
        from meshlib.agent.relays import userspace

        return userspace(settings, family)

    found: dict[str, Make] = {"ipvs": ipvs, "nftables": nftables}
    if run is not None:
        found["iptables"] = iptables
    return {**found, "userspace": relays or userspace}


def engine(
    settings: AgentSettings,
    chosen: Chosen,
    ledger: LedgerFile,
    on_step: Callable[[Step], None],
    on_change: Callable[[int, DesiredChange], None],
    make: MakeSocket | None = None,
    settled: Callable[[], None] = settle,
) -> NodeEngine:
    """The engine over the chosen backends. Nothing is read or written yet."""
    families = {}
    forgetter = Forgetter(connector(make))
    for family, backend in chosen.backends.items():
        compiler = Compiler(settings, family)
        programmer = Programmer(
            backend,
            compiler.place,
            ledger.ledger,
            ledger.write,
            guard=Guard(settings.panic_share, settings.confirmations),
            pace=Pace(settings.min_sync_period, settings.sync_period, settings.sync_burst),
            adopt=settings.adopt,
        )
        families[family] = FamilyEngine(
            compiler, programmer, Sweep(forgetter.forget if chosen.mode != "userspace" else None)
        )
    return NodeEngine(families, SYSTEM.now, SYSTEM.wall, on_step, on_change, settled=settled)


def leftovers(
    settings: AgentSettings,
    chosen: Chosen,
    ledger: LedgerFile,
    told: Callable[[Departed], None],
    make: MakeSocket | None = None,
    run: Run | None = None,
    finished: Callable[[], None] = lambda: None,
) -> Leftovers:
    """What other modes, or this one in another shape, may have left on this node. ``run``: as for ``makers``; it is not
    used any more once ``finished`` was called.

    Loads the modules of all backends: not before the first sync is over.
    """
    kept = {kind for backend in chosen.backends.values() for kind in backend.kinds}
    found = shapes(settings, tuple(chosen.backends), make, run)
    return Leftovers(others(chosen.mode, kept, found), ledger.ledger, ledger.write, told, finished)


def shapes(
    settings: AgentSettings,
    families: tuple[int, ...],
    make: MakeSocket | None = None,
    run: Run | None = run_here,
) -> list[tuple[str, int, Backend]]:
    """Every mode, in every shape, that can leave something in the kernel: with its family and a backend that reads and
    removes it. The companion's table is that of mode nftables."""
    bindings: tuple[VipBinding, ...] = ("anyip", "dummy")
    variants = [dataclasses.replace(settings, vip_binding=each, companion="none") for each in bindings]
    # In this order: virtual servers go with the first shape, and only then the device that holds their addresses.
    ways = [("ipvs", makers(each, make)["ipvs"]) for each in variants]
    usual = makers(settings, make, run=run)
    ways += [(mode, usual[mode]) for mode in ("nftables", "iptables") if mode in usual]
    return [(mode, family, maker(family)) for mode, maker in ways for family in families]


class Worker:
    """Runs blocking functions one after the other, apart from the loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._executor = DaemonExecutor()

    async def __call__(self, function: Callable[[], T]) -> T:
        async with self._lock:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function)


class Tasks:
    """The tasks of a source, on the running loop; an exception that nobody expected ends the agent."""

    def __init__(self, crashed: Callable[[str, BaseException], None]) -> None:
        self._crashed = crashed
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, Any], /, *, name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crashed(task.get_name(), error)


def context(
    settings: Mapping[str, Any], emit: EventSink, crashed: Callable[[str, BaseException], None]
) -> ResolverContext:
    """What a source may use, on the running loop."""
    executor = DaemonExecutor()

    async def run_blocking(function: Callable[..., T], /, *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)

    return ResolverContext(
        now=SYSTEM.now,
        wall=SYSTEM.wall,
        random=SYSTEM.random,
        sleep=sleep,
        spawn=Tasks(crashed).spawn,
        run_blocking=run_blocking,
        emit=emit,
        settings=settings,
    )


def kubernetes_settings(settings: AgentSettings, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The ``discovery.k8s`` settings of the agent: in-cluster, or a kubeconfig that is named explicitly (D12)."""
    environ = os.environ if environ is None else environ
    found: dict[str, Any] = {"allow_kubeconfig": bool(environ.get("KUBECONFIG"))}
    if settings.api_server:
        if environ.get("KUBECONFIG"):
            raise ConfigError("api_server", "KUBECONFIG names a server as well", "set one of the two")
        found["api_server"] = settings.api_server
        # A pod's own; without it we would be nobody to the server.
        found["service_account_dir"] = SERVICE_ACCOUNT_DIR
    return found
