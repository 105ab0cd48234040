"""The agent as a process in ipvs mode, with a real API server and its controllers in the same guest, under load."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.components.kube import KubeCluster
from tests.components.process import wait_for
from tests.kernel.lab.agent import AgentProcess
from tests.kernel.lab.load import Goal, Load
from tests.kernel.lab.servers import Servers
from tests.kernel.uml import cluster
from tests.kernel.uml.cluster import NODE, PODS, PORT, NodeSpace, Table, table

pytestmark = pytest.mark.slow

OLD, NEW = PODS[:4], PODS[4:8]
FOREIGN = "-t 192.0.2.9:80 -s wlc"


@pytest.fixture(scope="module")
def node(kube: KubeCluster) -> Iterator[NodeSpace]:
    """A node with pods that answer."""
    with NodeSpace("node", kube.port) as made:
        yield made


@pytest.fixture
def servers(node: NodeSpace) -> Iterator[Servers]:
    """Answers at the pods' addresses, as long as the test wants."""
    with Servers() as running:
        yield running


@pytest.fixture
def web(kube: KubeCluster) -> Iterator[str]:
    """The address of a Service whose pods are those called ``web``."""
    namespace = kube.create_namespace()
    kube.create_node("node-a", zone="zone-1", ip=NODE)
    made = kube.create_service(namespace, "web", target_port=PORT)
    yield f"{namespace} {made['spec']['clusterIP']}"
    kube.client.delete(f"/api/v1/namespaces/{namespace}/services/web")


@pytest.fixture
def agent(
    kube: KubeCluster, node: NodeSpace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AgentProcess]:
    """Not started yet; what it programmed goes with the test."""
    made = cluster.agent(kube, node, tmp_path_factory.mktemp("agent"), sync_period=1, min_sync_period=0.2)
    yield made
    made.daemon.stop(20)
    cluster.run(node.name, "ipvsadm", "-C")
    cluster.run(node.name, "sh", "-c", "ip route flush table local proto 109 2>/dev/null || true")


def add(kube: KubeCluster, namespace: str, *pods: str) -> None:
    """Ready pods of this node."""
    for pod in pods:
        kube.create_pod(namespace, f"web-{pod.replace('.', '-')}", {"app": "web"}, pod)


def serving(node: NodeSpace, vip: str, *pods: str) -> None:
    """Until new connections go to exactly these."""
    wanted = {f"-t {vip}:80 -r {pod}:{PORT} -m -w 1" for pod in pods}

    def same() -> bool:
        lines = table(node.name).destinations
        return {
            line for line in lines if line.startswith(f"-t {vip}:80 ") and not line.endswith("-w 0")
        } == wanted

    wait_for(same, timeout=90, interval=0.2, what=f"{vip} to lead to {sorted(pods)}")


@pytest.mark.acceptance(53, 111)
def test_a_rolling_update_under_load(
    kube: KubeCluster, node: NodeSpace, servers: Servers, web: str, agent: AgentProcess
) -> None:
    """Two at a time, new before old; nobody is refused, and nobody is sent to a pod that has gone."""
    namespace, vip = web.split()
    listening = node.serve(servers, OLD)
    add(kube, namespace, *OLD)
    agent.start()
    serving(node, vip, *OLD)
    alive = list(OLD)
    with Load(node.probe, [Goal(node.name, vip, 80)]) as load:
        load.more()
        for first in (0, 2):
            coming, going = NEW[first : first + 2], OLD[first : first + 2]
            listening |= node.serve(servers, coming)
            add(kube, namespace, *coming)
            alive += coming
            serving(node, vip, *alive)
            for pod in going:
                kube.terminate_pod(namespace, f"web-{pod.replace('.', '-')}")
                alive.remove(pod)
            serving(node, vip, *alive)
            for pod in going:
                servers.stop(listening.pop(pod))
                kube.delete_pod(namespace, f"web-{pod.replace('.', '-')}")
            load.more()
    assert set(load.answered) <= {*OLD, *NEW}
    for pod in alive:
        kube.delete_pod(namespace, f"web-{pod.replace('.', '-')}")


@pytest.mark.acceptance(98, 99)
def test_restarts_damage_and_a_newer_ledger_under_load(
    kube: KubeCluster, node: NodeSpace, servers: Servers, web: str, agent: AgentProcess
) -> None:
    """SIGKILL, SIGTERM, down from a version that wrote more into the ledger and up again: nothing is written and no
    connection fails; what somebody removed comes back within a sync period."""
    namespace, vip = web.split()
    node.serve(servers, OLD[:2])
    add(kube, namespace, *OLD[:2])
    agent.start()
    serving(node, vip, *OLD[:2])
    newer = '["+","tunnel",["10.96.0.9",80],"by-node"]'
    written = _written(agent)
    with Load(node.probe, [Goal(node.name, vip, 80)]) as load:
        load.more()
        agent.restart(politely=False)
        load.more()
        agent.daemon.stop(20)
        agent.ledger.write_text(agent.ledger.read_text() + newer + "\n")
        agent.start()
        load.more()
        agent.restart(politely=False)
        load.more()
        assert _written(agent) == written
        assert newer in agent.ledger.read_text().splitlines()
    cluster.run(node.name, "ipvsadm", "-D", "-t", f"{vip}:80")
    serving(node, vip, *OLD[:2])
    cluster.run(node.name, "ipvsadm", "-d", "-t", f"{vip}:80", "-r", f"{OLD[0]}:{PORT}")
    serving(node, vip, *OLD[:2])


@pytest.mark.acceptance(96, 97)
def test_cleanup_leaves_what_is_not_ours(
    kube: KubeCluster, node: NodeSpace, servers: Servers, web: str, agent: AgentProcess
) -> None:
    """A virtual server of somebody else's survives start, sync and `agent cleanup`; nothing of ours does."""
    namespace, vip = web.split()
    node.serve(servers, OLD[:1])
    cluster.run(node.name, "ipvsadm", "-A", *FOREIGN.split())
    before = cluster.run(node.name, "ip", "route", "show", "table", "local")
    add(kube, namespace, OLD[0])
    agent.start()
    serving(node, vip, OLD[0])
    assert FOREIGN in table(node.name).servers
    agent.daemon.stop(20)
    agent.cleanup()
    assert table(node.name) == Table(frozenset({FOREIGN}), frozenset())
    assert cluster.run(node.name, "ip", "route", "show", "table", "local") == before
    agent.cleanup()


def _written(agent: AgentProcess) -> list[str]:
    return [line for line in agent.daemon.log.read_text().splitlines() if " operations in " in line]
