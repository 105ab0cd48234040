"""A cluster inside the guest: a real API server with its controllers, and namespaces that are nodes of it.

Each node is called ``node-a`` and has the same addresses: what two programs make of the same cluster can be compared.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from meshlib.agent.backends.ipvs.kernel import IpvsKernel
from meshlib.agent.netlink.ipvs import RealKey, ServiceKey
from meshlib.agent.netlink.socket import NetlinkSocket
from tests.components.kube import KubeCluster
from tests.components.kube_binaries import cache_folder
from tests.components.process import Daemon, program
from tests.kernel.lab.agent import AgentProcess
from tests.kernel.lab.net import inside
from tests.kernel.lab.prober import Outcome, probe
from tests.kernel.lab.relay import Relay
from tests.kernel.lab.servers import Servers

NODE, SECOND = "10.0.0.1", "10.0.0.2"
PODS = tuple(f"10.1.0.{number}" for number in range(2, 10))
PORT = 8080


class Table(NamedTuple):
    """What a namespace's IPVS holds, in the words of ``ipvsadm -Sn``."""

    servers: frozenset[str]  #: "-t 10.96.0.1:80 -s rr -p 10800"
    destinations: frozenset[str]  #: "-t 10.96.0.1:80 -r 10.1.0.2:8080 -m -w 1"


def table(space: str) -> Table:
    """Read now."""
    text = run(space, "ipvsadm", "-Sn")
    lines = [line.strip() for line in text.splitlines()]
    return Table(
        frozenset(line.removeprefix("-A ") for line in lines if line.startswith("-A ")),
        frozenset(line.removeprefix("-a ") for line in lines if line.startswith("-a ")),
    )


def has(space: str, service: ServiceKey, real: RealKey) -> bool:
    """Whether a destination is there, at much less cost than the whole table. (Not out of /proc/net/ip_vs: with virtual
    servers in several namespaces the kernel leaves some of them out between two pages of it.)"""
    with inside(space), contextlib.closing(IpvsKernel(NetlinkSocket)) as kernel:
        return real in kernel.destinations(service)


def run(space: str, *command: str) -> str:
    """A program in a namespace; its output. Fails when it does."""
    words = [program("ip"), "netns", "exec", space, *command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class NodeSpace:
    """A namespace with the addresses of the node and of its pods, from which the API server is reached."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self._port = port
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> NodeSpace:
        ip = program("ip")
        subprocess.run([ip, "netns", "add", self.name], check=True)
        self._stack.callback(subprocess.run, [ip, "netns", "del", self.name], check=False)
        lines = [
            "link set lo up",
            "link add eth0 type veth peer name peer0",
            "link set eth0 up",
            "link set peer0 up",
            f"address add {NODE}/24 dev eth0",
            f"address add {SECOND}/24 dev eth0",
            "route add default via 10.0.0.254",
            *(f"address add {pod}/32 dev lo" for pod in PODS),
        ]
        subprocess.run([ip, "-n", self.name, "-batch", "-"], input="\n".join(lines), text=True, check=True)
        self._stack.enter_context(Relay(self.name, self._port, "127.0.0.1"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def probe(self, space: str, address: str, port: int, protocol: str = "TCP") -> Outcome:
        """One new flow from a namespace."""
        return probe(space, protocol, address, port)

    def serve(self, servers: Servers, pods: Iterable[str]) -> dict[str, Any]:
        """Servers at the pods' addresses."""
        return {pod: servers.listen(self.name, "TCP", pod, PORT) for pod in pods}


def kube_proxy(kube: KubeCluster, space: NodeSpace, folder: Path, mode: str = "ipvs") -> Daemon:
    """The original. Not started yet."""
    found = program("kube-proxy", os.environ.get("KUBEBUILDER_ASSETS"), cache_folder())
    config = kube.write_kubeconfig(folder / "kube-proxy.kubeconfig")
    args = [program("ip"), "netns", "exec", space.name, found]
    args += [f"--proxy-mode={mode}", f"--kubeconfig={config}"]
    args += ["--hostname-override=node-a", "--cluster-cidr=10.1.0.0/16", "--conntrack-max-per-core=0"]
    args += ["--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"]
    args += [f"--bind-address={NODE}"]
    return Daemon("kube-proxy", args, folder, {**os.environ, "PATH": _path(folder, mode)})


def _path(folder: Path, mode: str) -> str:
    """kube-proxy calls iptables by its plain name, and the guest, where it runs in ipvs mode, has the old tables."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if mode != "ipvs":
        return path
    legacy = folder / "legacy"
    legacy.mkdir()
    for name in ("iptables", "ip6tables"):
        for end in ("", "-save", "-restore"):
            (legacy / f"{name}{end}").symlink_to(f"/usr/sbin/{name}-legacy{end}")
    return f"{legacy}:{path}"


def agent(
    kube: KubeCluster, space: NodeSpace, folder: Path, *, in_pod: bool = False, **settings: Any
) -> AgentProcess:
    """Ours in ipvs mode. Not started yet. ``in_pod``: with a service account instead of a kubeconfig."""
    given = {"mode": "ipvs", "pod_cidrs": "10.1.0.0/24", "node_port_addresses": "0.0.0.0/0", **settings}
    if given["mode"] == "ipvs":
        # The guest, where it runs in this mode, has no nft for IPv4.
        given["companion"] = "none"
    if not in_pod:
        config = kube.write_kubeconfig(folder / "agent.kubeconfig")
        return AgentProcess(space.name, folder, env={"KUBECONFIG": str(config)}, **given)
    env = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(kube.port)}
    prepare = service_account(kube, folder / "account")
    return AgentProcess(space.name, folder, env=env, prepare=prepare, **given)


def service_account(kube: KubeCluster, folder: Path) -> str:
    """Shell commands that put a token and its kind where a pod has them, in a mount namespace of their own."""
    folder.mkdir()
    (folder / "token").write_text(kube.admin_token)
    (folder / "namespace").write_text("default")
    shutil.copy(kube.ca_file, folder / "ca.crt")
    there = "/run/secrets/kubernetes.io/serviceaccount"
    # As a container has it: a /run of the process's own.
    return f"mount -t tmpfs tmpfs /run; mkdir -p {there}; cp {folder}/* {there}"
