"""The agent as a process on a node of the laboratory, with a real API server and its controllers, under load."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from meshlib.agent.ops.control import ControlRefused
from tests.components.process import wait_for
from tests.kernel.lab.agent import AgentProcess
from tests.kernel.lab.lab import PORT, Lab
from tests.kernel.lab.load import Goal, Load
from tests.kernel.lab.net import FAR1, FAR2, NODE, POD1, POD2, inside
from tests.kernel.lab.prober import Refused
from tests.kernel.lab.relay import Relay
from tests.kernel.uml.cluster import service_account

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

Namespace = Callable[[Any], str]


@pytest.fixture
def cleaned(lab: Lab) -> Iterator[None]:
    """The node has no rules afterwards."""
    yield
    lab.network.run("node", "nft flush ruleset")
    lab.forget_flows()


@pytest.fixture
def start(
    lab: Lab, cleaned: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., AgentProcess]]:
    """start(kube, **settings): an agent on the lab's node, whose cluster is reached at the node's own addresses.

    ``in_cluster`` (host and port): with a service account, as a pod has it, instead of a kubeconfig.
    """
    folder = tmp_path_factory.mktemp("agent")  # short: a control socket's path has 107 bytes
    running: list[Any] = []

    def make(kube: Any, in_cluster: tuple[str, int] | None = None, **settings: Any) -> AgentProcess:
        forget_others(kube)
        relay = Relay(lab.network.spaces["node"], kube.port, "127.0.0.1", NODE)
        running.append(relay.__enter__())
        if in_cluster is None:
            config = kube.write_kubeconfig(folder / "kubeconfig")
            agent = AgentProcess(
                lab.network.spaces["node"], folder, env={"KUBECONFIG": str(config)}, **settings
            )
        else:
            env = dict(
                zip(("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"), map(str, in_cluster), strict=True)
            )
            prepare = service_account(kube, folder / "account")
            agent = AgentProcess(lab.network.spaces["node"], folder, env=env, prepare=prepare, **settings)
        running.append(agent)
        agent.start()
        return agent

    yield make
    for each in reversed(running):
        each.__exit__(None, None, None)


def forget_others(kube: Any) -> None:
    """Services of tests before this one go now, not while it compares rules."""
    found = kube.request("GET", "/api/v1/namespaces")["items"]
    leaving = {each["metadata"]["name"] for each in found if "deletionTimestamp" in each["metadata"]}
    for service in kube.request("GET", "/api/v1/services")["items"]:
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        if namespace in leaving:
            kube.client.delete(f"/api/v1/namespaces/{namespace}/services/{name}")


def nodes(kube: Any) -> None:
    """The lab's node and the other one."""
    kube.create_node("node-a", zone="zone-1", ip=NODE)
    kube.create_node("node-b", zone="zone-2", ip="10.0.1.1")


class Shop(NamedTuple):
    """A Service of type NodePort: where it is served, by the API server's own choice."""

    vip: str
    node_port: int

    @property
    def everywhere(self) -> tuple[Goal, ...]:
        """From a pod, the node itself and somebody outside."""
        return Goal("p1", self.vip, 80), Goal("node", self.vip, 80), Goal("out", NODE, self.node_port)


def shop(kube: Any, namespace: str, *pods: str, **more: Any) -> Shop:
    """The Service with these pods."""
    port = {"name": "http", "port": 80, "targetPort": PORT}
    made = kube.create_service(namespace, "web", ports=[port], type="NodePort", **more)
    for pod in pods:
        add_pod(kube, namespace, pod)
    return Shop(made["spec"]["clusterIP"], made["spec"]["ports"][0]["nodePort"])


def add_pod(kube: Any, namespace: str, address: str, app: str = "web") -> None:
    """A ready pod, on the node where its address is."""
    node = "node-a" if address in (POD1, POD2) else "node-b"
    kube.create_pod(namespace, pod_name(address), {"app": app}, address, node=node)


def pod_name(address: str) -> str:
    """Its name in the cluster."""
    return f"pod-{address.replace('.', '-')}"


@pytest.mark.acceptance(3, 43, 70, 110, 111)
def test_services_and_pods_come_and_go(
    lab: Lab, kube_v1beta1: Any, namespace: Namespace, start: Callable[..., AgentProcess]
) -> None:
    """From objects of the API to packets: no pods, pods, only terminating ones, none, headless, removed."""
    kube, ns = kube_v1beta1, namespace(kube_v1beta1)
    nodes(kube)
    web = shop(kube, ns)
    agent = start(kube)
    assert lab.probe("p1", web.vip, 80) == Refused()
    add_pod(kube, ns, POD1)
    add_pod(kube, ns, FAR1)
    agent.wait_rules(have=[POD1, FAR1])
    seen = {lab.ask("p2", web.vip, 80).endpoint for _ in range(40)}
    assert seen == {POD1, FAR1}
    assert lab.ask("out", NODE, web.node_port).endpoint in seen

    kube.set_pod_ready(ns, pod_name(POD1), False)
    agent.wait_rules(lack=[POD1])
    assert {lab.ask("p2", web.vip, 80).endpoint for _ in range(10)} == {FAR1}
    kube.terminate_pod(ns, pod_name(FAR1))
    wait_for(
        lambda: kube.slice_endpoints(ns, "web")[FAR1]["conditions"].get("terminating"),
        what="the slice to say so",
    )
    # Terminating and serving, and nobody else is ready: it goes on.
    assert lab.ask("p2", web.vip, 80).endpoint == FAR1
    kube.delete_pod(ns, pod_name(FAR1))
    wait_for(lambda: lab.probe("p2", web.vip, 80) == Refused(), timeout=60, what="the refusal")
    kube.request("DELETE", f"/api/v1/namespaces/{ns}/services/web")
    wait_for(lambda: web.vip not in agent.rules(), timeout=60, what="the Service to be gone")


@pytest.mark.acceptance(53, 79)
def test_a_rolling_update_of_twenty_pods_fails_no_connection(
    lab: Lab, kube_v1beta1: Any, namespace: Namespace, start: Callable[..., AgentProcess]
) -> None:
    """Five at a time: the new ones get ready, the old ones terminate and close when nobody is sent to them."""
    kube, ns = kube_v1beta1, namespace(kube_v1beta1)
    nodes(kube)
    old = [f"10.1.1.{number}" for number in range(10, 30)]
    new = [f"10.1.1.{number}" for number in range(40, 60)]
    lab.network.ip("far", *(f"address add {pod}/32 dev lo" for pod in old + new))
    servers = {pod: lab.serve("far", "TCP", pod, PORT) for pod in old}
    try:
        web = shop(kube, ns, *old)
        kube.wait_endpoints(ns, "web", old)
        agent = start(kube)
        with Load(lab.probe, web.everywhere) as load:
            load.more()
            for first in range(0, 20, 5):
                coming, going = new[first : first + 5], old[first : first + 5]
                for pod in coming:
                    servers[pod] = lab.serve("far", "TCP", pod, PORT)
                    add_pod(kube, ns, pod)
                agent.wait_rules(have=coming)
                for pod in going:
                    kube.terminate_pod(ns, pod_name(pod))
                agent.wait_rules(lack=going)
                # As a preStop hook does that waits until no proxy knows the pod any more.
                for pod in going:
                    lab.servers.stop(servers.pop(pod))
                    kube.delete_pod(ns, pod_name(pod))
                load.more()
            load.answered.clear()
            load.more(60)
        assert set(load.answered) <= set(new)
    finally:
        for server in servers.values():
            lab.servers.stop(server)
        lab.network.ip("far", *(f"address del {pod}/32 dev lo" for pod in old + new))


@pytest.mark.acceptance(99)
def test_the_agent_killed_and_restarted_under_load(
    lab: Lab, kube_v1beta1: Any, namespace: Namespace, start: Callable[..., AgentProcess]
) -> None:
    """SIGKILL, then SIGTERM: no connection fails, open ones go on, and the restarts write nothing at all."""
    kube, ns = kube_v1beta1, namespace(kube_v1beta1)
    nodes(kube)
    web = shop(kube, ns, POD2, FAR1, FAR2)
    kube.wait_endpoints(ns, "web", [POD2, FAR1, FAR2])
    agent = start(kube)
    with lab.flow("p1", web.vip, 80) as pod, lab.flow("out", NODE, web.node_port) as outside:
        before = pod.ask(), outside.ask()
        with Load(lab.probe, web.everywhere) as load:
            handles = lab.network.run("node", "nft -a list ruleset")
            for politely in (False, True, False):
                agent.restart(politely=politely)
                load.more()
            # Handles and their order tell of anything that was removed and made again.
            assert lab.network.run("node", "nft -a list ruleset") == handles
        assert (pod.ask(), outside.ask()) == before
    # One write per family in all four lives.
    written = [line for line in agent.daemon.tail(400).splitlines() if " operations in " in line]
    assert len(written) == 2, written


@pytest.mark.acceptance(100)
def test_an_api_server_that_is_gone(
    lab: Lab, own_kube: Callable[..., Any], start: Callable[..., AgentProcess]
) -> None:
    """Nothing changes while it is away, not even over a restart of the agent; afterwards its news arrive."""
    kube = own_kube()
    nodes(kube)
    web = shop(kube, "default", POD2, FAR1)
    kube.wait_endpoints("default", "web", [POD2, FAR1])
    agent = start(kube)
    with Load(lab.probe, web.everywhere) as load:
        load.more()
        handles = lab.network.run("node", "nft -a list ruleset")
        kube.kill_api()
        wait_for(lambda: agent.ask()["source"].get("stale"), timeout=60, what="the agent to notice")
        load.more()
        agent.daemon.kill()
        agent.daemon.start()
        wait_for(lambda: _asked(agent), timeout=60, what="the agent to run again")
        load.more()
        assert not agent.ask()["synced"]
        assert lab.network.run("node", "nft -a list ruleset") == handles
        kube.start_api()
        agent.daemon.wait_until(agent.synced, 90)
        add_pod(kube, "default", FAR2)
        agent.wait_rules(have=[FAR2])


def _asked(agent: AgentProcess) -> bool:
    try:
        return bool(agent.ask())
    except ControlRefused:
        return False


def test_a_cluster_that_is_suddenly_empty(
    lab: Lab, own_kube: Callable[..., Any], start: Callable[..., AgentProcess]
) -> None:
    """An API server over the wrong data takes nothing away; over the right ones again, all is as before."""
    kube = own_kube()
    nodes(kube)
    web = shop(kube, "default", POD2, FAR1)
    for number in range(30):
        kube.create_service("default", f"other-{number}", selector={"app": "web"})
    kube.wait_endpoints("default", "web", [POD2, FAR1])
    kube.wait_endpoints("default", "other-29", [POD2, FAR1])
    agent = start(kube)
    agent.daemon.wait_until(lambda: agent.family()["frontends"] >= 32)
    handles = lab.network.run("node", "nft -a list ruleset")
    with Load(lab.probe, web.everywhere) as load:
        load.more()
        kube.kill_api()
        kube.apiserver.args.append("--etcd-prefix=/empty")
        kube.start_api()
        held = wait_for(
            lambda: agent.family()["held_removals"], timeout=90, what="the removals to be held back"
        )
        assert held >= 31
        load.more()
        kube.kill_api()
        kube.apiserver.args.pop()
        kube.start_api()
        wait_for(lambda: not agent.family()["held_removals"], timeout=90, what="the Services to be back")
        load.more()
    assert lab.network.run("node", "nft -a list ruleset") == handles


@pytest.mark.acceptance(98)
def test_rules_changed_behind_its_back(
    lab: Lab, kube_v1beta1: Any, namespace: Namespace, start: Callable[..., AgentProcess]
) -> None:
    """Emptied maps, then no table at all: everything is there again after the next audit."""
    kube, ns = kube_v1beta1, namespace(kube_v1beta1)
    nodes(kube)
    web = shop(kube, ns, FAR1)
    kube.wait_endpoints(ns, "web", [FAR1])
    agent = start(kube, sync_period=1, min_sync_period=0)
    before = agent.rules()
    tables = [line.split()[1:3] for line in before.splitlines() if line.startswith("table")]
    assert tables
    maps = lab.network.run("node", "nft list maps")
    family, table = tables[0]
    name = next(line.split()[1] for line in maps.splitlines() if line.strip().startswith("map"))
    for damage in (f"flush map {family} {table} {name}", *(f"delete table {f} {t}" for f, t in tables)):
        lab.network.nft("node", damage)
        wait_for(lambda: sorted(agent.rules().split()) == sorted(before.split()), timeout=60, what=damage)
        assert lab.ask("p1", web.vip, 80).endpoint == FAR1


def test_the_programmer_that_dies(
    lab: Lab, kube_v1beta1: Any, namespace: Namespace, start: Callable[..., AgentProcess]
) -> None:
    """The agent cannot go on and ends, saying so, for whoever starts it again; what is programmed is served on."""
    kube, ns = kube_v1beta1, namespace(kube_v1beta1)
    nodes(kube)
    web = shop(kube, ns, POD2, FAR1)
    kube.wait_endpoints(ns, "web", [POD2, FAR1])
    agent = start(kube, sync_period=1, min_sync_period=0)
    with Load(lab.probe, web.everywhere) as load:
        (programmer,) = agent.children()
        os.kill(programmer, signal.SIGKILL)
        wait_for(lambda: not agent.daemon.running, timeout=30, what="the agent to end")
        assert "the programmer's process has ended" in agent.daemon.tail()
        load.more()
        agent.daemon.kill()
        agent.start()
        add_pod(kube, ns, FAR2)
        agent.wait_rules(have=[FAR2])


def test_a_second_agent_is_refused(
    lab: Lab, kube_v1beta1: Any, namespace: Namespace, start: Callable[..., AgentProcess]
) -> None:
    """It says who is in the way and ends; the first one goes on, rules untouched."""
    kube, ns = kube_v1beta1, namespace(kube_v1beta1)
    nodes(kube)
    web = shop(kube, ns, FAR1)
    kube.wait_endpoints(ns, "web", [FAR1])
    agent = start(kube)
    handles = lab.network.run("node", "nft -a list ruleset")
    done = agent.second()
    assert done.returncode == 3, done.stderr
    assert "another meshlib agent runs on this node" in done.stderr
    assert lab.network.run("node", "nft -a list ruleset") == handles
    add_pod(kube, ns, FAR2)
    agent.wait_rules(have=[FAR2])
    assert lab.ask("p1", web.vip, 80).endpoint in (FAR1, FAR2)


def test_a_cold_boot_without_kube_proxy_and_dns(
    lab: Lab, own_kube: Callable[..., Any], start: Callable[..., AgentProcess]
) -> None:
    """The environment names the API server by its Service, which nobody serves yet, and no resolver answers: the
    setting api_server leads past both, and afterwards the agent itself serves the API server's address."""
    kube = own_kube()
    nodes(kube)
    service = kube.request("GET", "/api/v1/namespaces/default/services/kubernetes")
    vip = service["spec"]["clusterIP"]
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {"name": "kubernetes", "namespace": "default"},
            "subsets": [
                {
                    "addresses": [{"ip": NODE}],
                    "ports": [{"name": "https", "port": kube.port, "protocol": "TCP"}],
                }
            ],
        }
    )
    kube.wait_endpoints("default", "kubernetes", [NODE])
    agent = start(
        kube,
        api_server=f"https://127.0.0.1:{kube.port}",
        in_cluster=("10.96.0.1", service["spec"]["ports"][0]["port"]),
    )
    agent.wait_rules(have=[vip, NODE])
    with inside(lab.network.spaces["p1"]):
        client = socket.create_connection((vip, 443), timeout=10)
    trusted = ssl.create_default_context(cafile=str(kube.ca_file))
    with trusted.wrap_socket(client, server_hostname="kubernetes.default.svc") as secured:
        secured.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert secured.recv(100).startswith(b"HTTP/1.0 ")


def test_a_ledger_of_the_next_version(
    lab: Lab, kube_v1beta1: Any, namespace: Namespace, start: Callable[..., AgentProcess]
) -> None:
    """Up and down again under load: records that only a newer agent knows are kept for it, and disturb nobody."""
    kube, ns = kube_v1beta1, namespace(kube_v1beta1)
    nodes(kube)
    web = shop(kube, ns, POD2, FAR1)
    kube.wait_endpoints(ns, "web", [POD2, FAR1])
    agent = start(kube)
    with Load(lab.probe, web.everywhere) as load:
        load.more()
        handles = lab.network.run("node", "nft -a list ruleset")
        agent.daemon.stop(20)
        newer = ['["lease","10.96.0.9",{"until":12}]', '["+","tunnel",["10.96.0.9",80],"by-node"]']
        agent.ledger.write_text(agent.ledger.read_text() + "\n".join(newer) + "\n")
        agent.start()
        load.more()
        agent.restart(politely=False)
        load.more()
        assert lab.network.run("node", "nft -a list ruleset") == handles
        add_pod(kube, ns, FAR2)
        agent.wait_rules(have=[FAR2])
    agent.daemon.stop(20)
    assert set(newer) <= set(agent.ledger.read_text().splitlines())
