"""The Mesh that is used when none is named, and waiting until targets are known."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType

from meshlib.model.target import Target
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh

_default_lock = threading.Lock()
_default: Mesh | None = None


def default_mesh() -> Mesh:
    """The Mesh that ``wrap`` and the channel functions use when none is given; one per process, made on first use."""
    global _default
    with _default_lock:
        if _default is None or _default.closed:
            _default = Mesh()
        return _default


def transparent_mesh() -> Mesh:
    """A new Mesh for transparent use: configured as any other, but it reads a kubeconfig only if a setting names one
    (decision D12): what nobody asked for must not find its way to a cluster from a laptop or a test run."""
    config = load_config()
    cluster = {"allow_kubeconfig": False, **config.discovery.get("k8s", {})}
    discovery = {**config.discovery, "k8s": MappingProxyType(cluster)}
    return Mesh(config=replace(config, discovery=MappingProxyType(discovery)))


def _new_default_lock() -> None:
    global _default_lock
    _default_lock = threading.Lock()


os.register_at_fork(after_in_child=_new_default_lock)


async def ready(
    targets: str | Target | Iterable[str | Target], *, timeout: float = 10.0, mesh: Mesh | None = None
) -> None:
    """Wait until discovery has spoken about every target: for readiness probes and start-up hooks.

    "Spoken" means that there is a set, or a known no (an empty Service does not make its callers unready). Raises
    NotSynced for the first target that is still unknown after ``timeout`` seconds, and TargetError for a bad target.
    """
    owner = mesh or default_mesh()
    wanted = [targets] if isinstance(targets, (str, Target)) else list(targets)
    handles = [owner.target(target) for target in wanted]
    for handle in handles:
        handle.try_start()  # all at once: the time is for all of them together
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    for handle in handles:
        while True:
            seen = handle.state
            if handle.synced:
                break
            left = deadline - loop.time()
            if left <= 0:
                raise handle.balancer.not_synced()
            await handle.wait_for_change_async(left, seen)
