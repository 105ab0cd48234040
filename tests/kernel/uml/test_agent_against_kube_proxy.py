"""kube-proxy 1.20.2 in ipvs mode and the agent in ipvs mode, on the same cluster at once: the same IPVS tables.

Each intended difference has its row in docs/kube-proxy-differences.md; those that can be seen here are kept by a test.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from meshlib.agent.netlink.ipvs import RealKey, ServiceKey
from tests.components.kube import KubeCluster
from tests.components.process import wait_for
from tests.kernel.uml import cluster as words
from tests.kernel.uml.cluster import NODE, PODS, SECOND, NodeSpace, Table, table

pytestmark = pytest.mark.slow

#: Served by something that is not here: pods of another node, and a Service whose ports tell how far both are.
FAR = tuple(f"10.1.1.{number}" for number in range(2, 6))
MARK = "10.96.200.1"
MERGE = {"content-type": "application/merge-patch+json"}
PAGE = Path(__file__).parents[3] / "docs" / "kube-proxy-differences.md"


class Intended(NamedTuple):
    """A difference that is meant: its row in the page, who has the line, and a part of it."""

    name: str
    ours: bool
    part: str


LOOPBACK = Intended("Node ports on loopback", ours=False, part=" 127.0.0.1:")
SECOND_ADDRESS = Intended("Second addresses of a network", ours=True, part=f" {SECOND}:")
#: In every table with a node port, where the agent is told to use all addresses as kube-proxy does.
USUAL = (LOOPBACK, SECOND_ADDRESS)


class Both:
    """The two of them on the same cluster."""

    def __init__(self, kube: KubeCluster, original: NodeSpace, ours: NodeSpace) -> None:
        self.kube, self.original, self.ours = kube, original, ours
        self._step = 0

    def agree(self, *more: Intended) -> tuple[Table, Table]:
        """Waits until both have seen everything up to now, and their tables are the same but for what is intended.

        Each of ``more`` must be there. Returns kube-proxy's table and ours.
        """
        self._step += 1
        port = 10000 + self._step
        ports = [{"name": "mark", "port": port, "protocol": "TCP"}]
        if self._step == 1:
            self.kube.create_service("default", "mark", selector={}, clusterIP=MARK, ports=ports)
        else:
            path = "/api/v1/namespaces/default/services/mark"
            self.kube.request("PATCH", path, {"spec": {"ports": ports}}, headers=MERGE)
        self.kube.put_slice("default", "mark", "mark", ["10.1.9.9"], ports)
        for space in (self.original.name, self.ours.name):
            wait_for(
                partial(words.has, space, ServiceKey("TCP", MARK, port), RealKey("10.1.9.9", port)),
                timeout=90,
                interval=0.1,
                what=f"the {space} to have seen everything",
            )
        deadline = time.monotonic() + 60
        while True:
            theirs, mine = table(self.original.name), table(self.ours.name)
            wrong = differences(theirs, mine, more)
            if not wrong:
                return theirs, mine
            assert time.monotonic() < deadline, "\n".join(wrong)
            time.sleep(0.5)


def differences(theirs: Table, mine: Table, more: Sequence[Intended] = ()) -> list[str]:
    """Lines that only one of them has, without the intended ones; and of ``more`` those that cannot be seen."""
    told: list[str] = []
    seen: set[Intended] = set()
    for left, right in ((theirs.servers, mine.servers), (theirs.destinations, mine.destinations)):
        for ours, lines in ((False, left - right), (True, right - left)):
            for line in sorted(lines):
                why = [each for each in (*USUAL, *more) if each.ours is ours and each.part in f" {line} "]
                seen.update(why)
                if not why:
                    told.append(f"only {'meshlib' if ours else 'kube-proxy'}: {line}")
    return told + [f"no longer different: {each.name}" for each in more if each not in seen]


@pytest.fixture(scope="module")
def both(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """The original and ours."""
    folder = tmp_path_factory.mktemp("both")
    with NodeSpace("original", kube.port) as original, NodeSpace("ours", kube.port) as ours:
        kube.create_node("node-a", zone="zone-1", ip=NODE)
        kube.create_node("node-b", zone="zone-2", ip="10.0.0.3")
        proxy = words.kube_proxy(kube, original, folder)
        proxy.start()
        try:
            with words.agent(kube, ours, folder, external_ip_cidrs="10.77.0.0/16"):
                yield Both(kube, original, ours)
        finally:
            print(proxy.tail(60))
            proxy.stop()


def pods(kube: KubeCluster, app: str, *addresses: str) -> None:
    """Ready pods; those of 10.1.0.0/24 are on this node."""
    for address in addresses:
        node = "node-a" if address in PODS else "node-b"
        kube.create_pod("default", f"{app}-{address.replace('.', '-')}", {"app": app}, address, node=node)


def port(name: str, number: int, protocol: str = "TCP", **more: Any) -> dict[str, Any]:
    """A Service's port."""
    return {"name": name, "port": number, "targetPort": 8080, "protocol": protocol, **more}


def ingress(kube: KubeCluster, name: str, *entries: dict[str, str]) -> None:
    """What a cloud's controller writes into a Service of type LoadBalancer."""
    path = f"/api/v1/namespaces/default/services/{name}/status"
    kube.request("PATCH", path, {"status": {"loadBalancer": {"ingress": list(entries)}}}, headers=MERGE)


@pytest.mark.acceptance(6, 8, 54, 59, 72)
def test_every_kind_of_service(both: Both) -> None:
    """ClusterIP, several ports and protocols, NodePort, LoadBalancer, externalIPs, none of them, no endpoints."""
    kube = both.kube
    kube.create_service("default", "web")
    pods(kube, "web", PODS[0], PODS[1], FAR[0])
    kube.create_service(
        "default", "dns", ports=[port("udp", 53, "UDP"), port("tcp", 53), port("sctp", 53, "SCTP")]
    )
    pods(kube, "dns", PODS[2], FAR[1])
    kube.create_service("default", "node", type="NodePort", ports=[port("a", 80), port("b", 81, "UDP")])
    pods(kube, "node", FAR[2], PODS[3])
    kube.create_service("default", "lb", type="LoadBalancer")
    pods(kube, "lb", FAR[3])
    ingress(kube, "lb", {"ip": "10.77.1.1"}, {"hostname": "lb.example"})
    kube.create_service(
        "default", "outside", externalIPs=["10.77.0.9", "10.77.0.10"], ports=[port("http", 8000)]
    )
    pods(kube, "outside", PODS[4])
    kube.create_service("default", "empty")
    kube.create_service("default", "quiet", headless=True)
    kube.create_service("default", "named", type="ExternalName", externalName="example.com", selector={})
    for number in range(20):
        kube.create_service("default", f"many-{number}", selector={"app": "web"})
    theirs, mine = both.agree(*USUAL)
    assert len(mine.servers) > 30
    assert {line.split()[1].split(":")[0] for line in theirs.servers} >= {
        NODE,
        "127.0.0.1",
        "10.77.1.1",
    }


@pytest.mark.acceptance(7, 9, 14, 15, 16, 18)
def test_changes(both: Both) -> None:
    """Ports renamed and renumbered, types changed, endpoints ready and not, named ports with two numbers, removal."""
    kube = both.kube
    kube.create_service("default", "turn")
    pods(kube, "turn", PODS[0], FAR[0], FAR[1])
    both.agree()
    kube.create_service("default", "turn", ports=[port("renamed", 80), port("more", 81, targetPort=9090)])
    both.agree()
    kube.create_service("default", "turn", ports=[port("renamed", 8888)], type="NodePort")
    kube.set_pod_ready("default", f"turn-{FAR[0].replace('.', '-')}", False)
    both.agree()
    kube.delete_pod("default", f"turn-{PODS[0].replace('.', '-')}")
    kube.delete_pod("default", f"turn-{FAR[1].replace('.', '-')}")
    both.agree()
    kube.set_pod_ready("default", f"turn-{FAR[0].replace('.', '-')}", True)
    kube.create_service("default", "split", selector={})
    for number in (8080, 9090):
        slice_port = [{"name": "http", "port": number, "protocol": "TCP"}]
        kube.put_slice("default", f"split-{number}", "split", [f"10.1.2.{number % 250}"], slice_port)
    both.agree()
    for name in ("turn", "split"):
        kube.request("DELETE", f"/api/v1/namespaces/default/services/{name}")
    _, mine = both.agree()
    assert not [line for line in mine.destinations if ":9090" in line]


@pytest.mark.acceptance(13, 56, 80)
def test_affinity_and_local_policy(both: Both) -> None:
    """Persistence comes, changes and goes; externalTrafficPolicy Local keeps to this node where there is somebody."""
    kube = both.kube
    kube.create_service("default", "sticky", sessionAffinity="ClientIP")
    pods(kube, "sticky", PODS[0], FAR[0])
    theirs, _ = both.agree()
    assert [line for line in theirs.servers if line.endswith("-p 10800")]
    config = {"clientIP": {"timeoutSeconds": 77}}
    kube.create_service("default", "sticky", sessionAffinity="ClientIP", sessionAffinityConfig=config)
    theirs, _ = both.agree()
    assert [line for line in theirs.servers if line.endswith("-p 77")]
    kube.create_service("default", "sticky", sessionAffinity="None")
    both.agree()
    kube.create_service("default", "local", type="LoadBalancer", externalTrafficPolicy="Local")
    ingress(kube, "local", {"ip": "10.77.1.2"})
    pods(kube, "local", PODS[1], FAR[1])
    _, mine = both.agree()
    assert [line for line in mine.destinations if line.startswith("-t 10.77.1.2:80 ")] == [
        f"-t 10.77.1.2:80 -r {PODS[1]}:8080 -m -w 1"
    ]


@pytest.mark.acceptance(1, 2)
def test_services_of_other_proxies(both: Both) -> None:
    """The labels service-proxy-name and headless take a Service away from both, and give it back to both."""
    kube = both.kube
    kube.create_service("default", "labelled")
    pods(kube, "labelled", PODS[0])
    path = "/api/v1/namespaces/default/services/labelled"
    vip = kube.request("GET", path)["spec"]["clusterIP"]
    for label in ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"):
        assert any(f"-t {vip}:80 " in line for line in both.agree()[1].servers)
        kube.request("PATCH", path, {"metadata": {"labels": {label: "x"}}}, headers=MERGE)
        assert not any(f"-t {vip}:80 " in line for line in both.agree()[1].servers)
        kube.request("PATCH", path, {"metadata": {"labels": {label: None}}}, headers=MERGE)
    assert any(f"-t {vip}:80 " in line for line in both.agree()[1].servers)


CLAIMED, TAKEN = "198.51.100.9", "10.96.200.2"


def test_intended_differences(both: Both) -> None:
    """What the agent does otherwise on purpose: all of it is there, and nothing else."""
    kube = both.kube
    kube.create_service("default", "claim", externalIPs=[CLAIMED], clusterIP="10.96.200.3")
    pods(kube, "claim", PODS[5])
    kube.create_service("default", "hijack", type="LoadBalancer", ports=[port("http", 6443)])
    ingress(kube, "hijack", {"ip": NODE})
    kube.create_service("default", "twice", selector={}, clusterIP=TAKEN, ports=[port("http", 80)])
    for number in (8080, 9090):
        slice_port = [{"name": "http", "port": number, "protocol": "TCP"}]
        kube.put_slice("default", f"twice-{number}", "twice", ["10.1.2.7"], slice_port)
    kube.create_service("default", "leaving", clusterIP="10.96.200.4")
    pods(kube, "leaving", PODS[6])
    kube.wait_endpoints("default", "leaving", [PODS[6]])
    kube.terminate_pod("default", f"leaving-{PODS[6].replace('.', '-')}")
    intended = (
        Intended("External addresses", ours=False, part=f" {CLAIMED}:80 "),
        Intended("Load-balancer addresses that are a node's", ours=False, part=f" {NODE}:6443 "),
        Intended("One address with two ports", ours=True, part=f" {TAKEN}:80 -r 10.1.2.7:"),
        Intended("Terminating endpoints", ours=True, part=f" 10.96.200.4:80 -r {PODS[6]}:8080 "),
    )
    both.agree(*intended)
    page = PAGE.read_text()
    for each in (*USUAL, *intended):
        assert f"| {each.name} |" in page
    assert "kube-ipvs0" in words.run(both.original.name, "ip", "link")
    assert "kube-ipvs0" not in words.run(both.ours.name, "ip", "link")
    for name in ("claim", "hijack", "twice", "leaving"):
        kube.request("DELETE", f"/api/v1/namespaces/default/services/{name}")
    both.agree()
