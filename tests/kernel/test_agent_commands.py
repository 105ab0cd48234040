"""The agent's commands as a person calls them, each test in network namespaces of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshlib.agent.engine.ledger_file import LedgerFile
from tests.components.process import wait_for

pytestmark = pytest.mark.kernel

MANIFESTS = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  ipFamilies: [IPv4]
  type: NodePort
  ports: [{name: http, port: 80, protocol: TCP, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [192.0.2.11], conditions: {ready: true}}
- {addresses: [192.0.2.12], conditions: {ready: true}}
"""
#: What kube-proxy in iptables mode makes of it.
KUBE_PROXY = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SEP-1 - [0:0]
:KUBE-SEP-2 - [0:0]
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-SVC-A
-A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-1
-A KUBE-SVC-A -j KUBE-SEP-2
-A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 192.0.2.11:8080
-A KUBE-SEP-2 -p tcp -m tcp -j DNAT --to-destination 192.0.2.12:8080
COMMIT
"""
OPTIONS = "--set mode=nftables --set families=4 --set node_name=n1 --set node_addresses=192.0.2.1"


class Node:
    """A network namespace that lives as long as the test: commands run in it one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "files").mkdir()
        (folder / "files" / "all.yaml").write_text(MANIFESTS)
        (folder / "rules").write_text(KUBE_PROXY)
        self._shell = subprocess.Popen(
            ["unshare", "-n", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        # The namespace is another once unshare has become cat.
        while Path(f"/proc/{self._shell.pid}/comm").read_text().strip() != "cat":
            os.sched_yield()
        self.sh("ip link set lo up")
        self.sh("ip link add eth0 type veth peer name eth1 && ip link set eth0 up && ip link set eth1 up")
        self.sh("ip address add 192.0.2.1/24 dev eth0")

        self._background: list[subprocess.Popen[str]] = []

    def close(self) -> None:
        for process in self._background:
            process.kill()
            process.communicate()
        self._shell.communicate()

    def popen(self, words: list[str], **pipes: int) -> subprocess.Popen[str]:
        """In the background, until the test ends at the latest."""
        command = ["nsenter", f"--net=/proc/{self._shell.pid}/ns/net", *words]
        process = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
        self._background.append(process)
        found: subprocess.Popen[str] = process
        return found

    def background(self, script: str) -> subprocess.Popen[str]:
        """A Python program that says when it is up."""
        process = self.popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    def handover(self, way: str) -> tuple[subprocess.Popen[str], Iterator[str]]:
        """The command with a probe, and its lines as they come."""
        words = ["handover", way, "--state", str(self.folder / "state"), "--probe", "10.96.0.1:80"]
        process = self.popen([sys.executable, "-u", "-m", "meshlib", "agent", *words], stdout=subprocess.PIPE)
        assert process.stdout is not None
        return process, iter(process.stdout)

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        prefix = ["nsenter", f"--net=/proc/{self._shell.pid}/ns/net"]
        return subprocess.run(prefix + words, capture_output=True, text=True, timeout=60, check=False)

    def sh(self, line: str) -> str:
        done = self.run(["sh", "-c", line])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, url: str) -> str:
        read = f"import urllib.request; print(urllib.request.urlopen({url!r}).read().decode())"
        done = self.run([sys.executable, "-c", read])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def agent(self, line: str, files: bool = False) -> subprocess.CompletedProcess[str]:
        """One command of the agent, with the test's own state."""
        options = [] if line == "status" else OPTIONS.split()
        words = [*line.split(), *options, "--state", str(self.folder / "state")]
        if files:
            words += ["--files", str(self.folder / "files")]
        return self.run([sys.executable, "-m", "meshlib", "agent", *words])

    def json(self, line: str, files: bool = False) -> Any:
        done = self.agent(f"{line} -o json", files)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def start(self, *before: str, more: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """An agent in the background; returns when something is in the kernel. ``before``: a program that starts it."""
        state, files = str(self.folder / "state"), str(self.folder / "files")
        words = ["run", *OPTIONS.split(), *more, "--state", state, "--files", files, "--log", "json"]
        running = self.popen(
            [*before, sys.executable, "-m", "meshlib", "agent", *words], stderr=subprocess.PIPE
        )
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("{") and json.loads(line)["event"] == "written":
                return running
        raise AssertionError("the agent ended before it had written anything")


@pytest.fixture
def node(tmp_path: Path) -> Any:
    made = Node(tmp_path)
    try:
        yield made
    finally:
        made.close()


def stop(running: subprocess.Popen[str]) -> None:
    running.terminate()
    _, said = running.communicate(timeout=30)
    assert running.returncode == 0, said


def test_from_plan_to_cleanup(node: Node) -> None:
    """Plan tells what would be done in words; run does it; explain agrees; the rules outlive it; cleanup ends them."""
    done = node.agent("plan", files=True)
    assert done.returncode == 1
    assert "+ vip_slot 10.96.0.1 . 6 . 80 . 0x0 : 192.0.2.11 . 8080   for TCP 10.96.0.1:80" in done.stdout
    assert "b'" not in done.stdout
    running = node.start()
    try:
        found = node.json("explain 192.0.2.1:30080")
        assert (found["service"], found["kernel"]["missing"]) == ("shop/web", [])
        pages = node.get("http://127.0.0.1:10249/metrics")
        assert 'meshlib_agent_mode_info{mode="nftables"' in pages
        assert 'kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1.0' in pages
        assert node.agent("status").returncode == 0
        assert "another meshlib agent runs" in node.agent("run", files=True).stderr
    finally:
        stop(running)
    assert node.agent("plan", files=True).returncode == 0
    element = "nft delete element ip meshlib vip_slot '{ 10.96.0.1 . tcp . 80 . 0x0 }'"
    node.sh(element)
    done = node.agent("explain 10.96.0.1:80", files=True)
    assert done.returncode == 1
    assert "- missing: vip_slot 10.96.0.1 . 6 . 80 . 0x0" in done.stdout
    assert node.agent("cleanup").returncode == 0
    assert "meshlib" not in node.sh("nft list tables")


def test_a_manifest_that_cannot_be_read(node: Node) -> None:
    """Told at once, with its name and what is wrong: it does not mend itself while one waits."""
    (node.folder / "files" / "more.yaml").write_text("kind: [Service")
    (node.folder / "files" / "other.yaml").write_text("kind: {Service")
    done = node.agent("plan --timeout 3600", files=True)
    assert done.returncode == 3
    assert "more.yaml:2: not YAML" in done.stderr
    assert "other.yaml:2: not YAML" in done.stderr


def test_compare(node: Node) -> None:
    """kube-proxy's rules lead to the same endpoints; then one of them is gone; then there is no kube-proxy."""
    assert node.agent("compare", files=True).returncode == 3
    node.sh(f"iptables-nft-restore < {node.folder}/rules")
    found = node.json("compare", files=True)["IPv4"]
    assert (found["by"], found["same"], found["only_meshlib"]) == (["iptables-nft"], 2, [])
    assert node.agent("compare", files=True).returncode == 0
    node.sh("iptables-nft -t nat -D KUBE-SVC-A 2")
    done = node.agent("compare", files=True)
    assert done.returncode == 1
    assert "kube-proxy leads to 192.0.2.11:8080; meshlib to 192.0.2.11:8080, 192.0.2.12:8080" in done.stdout


def test_beside_kube_proxy(node: Node) -> None:
    """With its chains here an agent refuses to start, and says what can be done; told so, it starts."""
    node.sh(f"iptables-nft-restore < {node.folder}/rules")
    done = node.agent("run", files=True)
    assert done.returncode == 3
    assert "chain KUBE-SERVICES in table nat (IPv4)" in done.stderr
    assert "meshlib agent handover" in done.stderr
    assert "meshlib" not in node.sh("nft list tables")
    beside = node.agent("plan --set service_proxy_name=meshlib --set beside_kube_proxy=true", files=True)
    assert "0 frontends" in beside.stdout


def test_prepare_and_back(node: Node) -> None:
    """Settings are set with their previous values noted, floors only raised; cleanup puts them back, once."""
    node.sh("sysctl -qw net.ipv4.ip_forward=0 net.netfilter.nf_conntrack_tcp_timeout_close_wait=7200")
    done = node.agent("prepare --set conntrack_max_per_core=0 --set conntrack_min=0")
    assert done.returncode == 0, done.stderr
    assert node.sh("sysctl -n net.ipv4.ip_forward").strip() == "1"
    assert node.sh("sysctl -n net.netfilter.nf_conntrack_tcp_timeout_close_wait").strip() == "7200"
    assert "net.ipv4.ip_forward" not in node.agent("prepare --dry-run").stdout
    assert "net.ipv4.ip_forward: 0 again" in node.agent("cleanup").stdout
    assert node.sh("sysctl -n net.ipv4.ip_forward").strip() == "0"
    node.sh("sysctl -qw net.ipv4.ip_forward=1")
    assert "ip_forward" not in node.agent("cleanup").stdout
    assert node.sh("sysctl -n net.ipv4.ip_forward").strip() == "1"


def test_preflight(node: Node) -> None:
    """What lacks has a fix and an exit code: forwarding off, a firewall that drops, NetworkPolicy, a taken port."""
    node.sh("sysctl -qw net.ipv4.ip_forward=0")
    found = node.json("preflight")
    lacks = {each["what"] for each in found["findings"] if each["level"] == "lack"}
    assert lacks == {"net.ipv4.ip_forward is 0, has to be 1"}
    node.sh("sysctl -qw net.ipv4.ip_forward=1")
    assert node.agent("preflight").returncode == 0
    node.sh(
        "nft 'add table inet host; add chain inet host f { type filter hook forward priority 0; policy drop; }'"
    )
    node.sh("nft 'add table ip filter; add chain ip filter cali-FORWARD'")
    node.sh("nft 'add table ip kube-proxy'")
    node.sh("sysctl -qw net.ipv4.ip_local_port_range='20000 60999'")
    found = node.json("preflight")
    said = {each["what"]: each["fix"] for each in found["findings"]}
    assert "ct status dnat accept" in said["inet host f drops at forward what it does not accept"]
    assert any(what.startswith("Calico filters") for what in said)
    assert any(what.startswith("2768 node ports may be taken") for what in said)
    assert [each["what"] for each in found["findings"] if each["level"] == "lack"] == [
        "kube-proxy: nftables table kube-proxy (IPv4)"
    ]


def test_with_the_rights_of_the_pod(node: Node) -> None:
    """Root with CAP_NET_ADMIN alone, as the DaemonSet has it, is enough; the process that reads data keeps nothing.
    Other people's rules are read, too, and what of them is in the way is told."""
    chain = "type filter hook forward priority 0; policy drop;"
    node.sh(f"nft 'add table inet host; add chain inet host f {{ {chain} }}'")
    words = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all", "--no-new-privs"]
    running = node.start(*words)
    try:
        status = Path(f"/proc/{running.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        done = node.agent("status")
        assert done.returncode == 0
        assert "in the way: inet host f drops at forward by policy" in done.stdout
        assert "10.96.0.1 . tcp . 80" in node.sh("nft list table ip meshlib")
    finally:
        stop(running)


KUBE_PROXY_PAGE = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"iptables")
    def log_message(self, *_): pass
server = HTTPServer(("127.0.0.1", 10249), Page)
print("up", flush=True)
server.serve_forever()
"""


SERVERS = """
import threading
from socketserver import BaseRequestHandler, ThreadingTCPServer
for address in ("192.0.2.11", "192.0.2.12"):
    server = ThreadingTCPServer((address, 8080), BaseRequestHandler)
    threading.Thread(target=server.serve_forever).start()
print("up", flush=True)
"""


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_handover_and_back(node: Node, mode: str) -> None:
    """From kube-proxy and back: each step waits for what it names, and no connection fails on the way."""
    node.sh("ip address add 192.0.2.11/32 dev lo && ip address add 192.0.2.12/32 dev lo")
    node.sh("ip route add 10.96.0.0/16 dev eth0")
    rules = f"iptables-nft-restore < {node.folder}/rules && iptables-nft -t nat -A OUTPUT -j KUBE-SERVICES"
    node.sh(rules)
    node.background(SERVERS)
    kube_proxy = node.background(KUBE_PROXY_PAGE)

    moving, lines = node.handover("from-kube-proxy")
    assert next(lines).startswith(
        "1/4 meshlib has everything in the kernel, beside kube-proxy's rules: not yet"
    )
    quiet = ("--set", "health_address=", "--set", "metrics_address=")
    running = node.start(more=("--set", "take_over=true", "--set", f"mode={mode}", *quiet))
    done = "1/4 meshlib has everything in the kernel, beside kube-proxy's rules: yes"
    assert any(line.startswith(done) for line in lines)  # before that it may look while the agent is at work
    assert next(lines) == "2/4 both lead to the same endpoints: yes (2 frontends compared)\n"
    assert next(lines).startswith("3/4 kube-proxy has stopped: not yet")
    kube_proxy.kill()
    assert any(line.startswith("3/4 kube-proxy has stopped: yes") for line in lines)
    assert "chain KUBE-SERVICES in table nat" in next(lines)
    chains = "KUBE-SERVICES KUBE-NODEPORTS KUBE-SVC-A KUBE-SEP-1 KUBE-SEP-2"
    node.sh("iptables-nft -t nat -D OUTPUT -j KUBE-SERVICES")
    for option in ("-F", "-X"):
        node.sh(f"for each in {chains}; do iptables-nft -t nat {option} $each; done")
    assert next(lines).startswith("4/4 kube-proxy's rules are gone: yes")
    made, failed = counts(next(lines))
    assert (made > 5, failed, moving.wait(30)) == (True, 0, 0)

    moving, lines = node.handover("to-kube-proxy")
    assert next(lines).startswith("1/4 kube-proxy runs: not yet")
    node.sh(rules)
    node.background(KUBE_PROXY_PAGE)
    assert next(lines) == "1/4 kube-proxy runs: yes (mode iptables)\n"
    assert next(lines).startswith("2/4 both lead to the same endpoints: yes")
    assert next(lines).startswith("3/4 the agent has stopped: not yet")
    stop(running)
    assert next(lines).startswith("3/4 the agent has stopped: yes")
    assert next(lines) == "4/4 meshlib's rules are gone: not yet. Now: meshlib agent cleanup\n"
    assert node.agent("cleanup").returncode == 0
    assert next(lines) == "4/4 meshlib's rules are gone: yes\n"
    made, failed = counts(next(lines))
    assert (made > 5, failed, moving.wait(30)) == (True, 0, 0)


def counts(line: str) -> tuple[int, int]:
    """Connections made and failed, of a line like ``10.96.0.1:80: 12 connections, 0 failed``."""
    words = line.split()
    return int(words[1]), int(words[3])


ECHO = """
import socket, threading
def serve(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind((address, 5353))
        while True:
            _, sender = one.recvfrom(100)
            one.sendto(address.encode(), sender)
for address in ("192.0.2.11", "192.0.2.12"):
    threading.Thread(target=serve, args=(address,)).start()
print("up", flush=True)
"""
#: A client with one source port: to the kernel all of it is one flow. Ends when the answer is the expected one.
CLIENT = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.bind(("192.0.2.1", 4000))
    one.settimeout(0.2)
    for _ in range(150):
        try:
            one.sendto(b"?", (sys.argv[1], int(sys.argv[2])))
            if one.recv(100).decode() == sys.argv[3]:
                sys.exit(0)
        except OSError:
            pass
        time.sleep(0.2)
sys.exit("never answered by " + sys.argv[3])
"""
DNS = """
apiVersion: v1
kind: Service
metadata: {{name: dns, namespace: shop}}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ipFamilies: [IPv4]
  type: NodePort
  ports: [{{name: dns, port: 53, protocol: UDP, nodePort: 30053}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: dns-1, namespace: shop, labels: {{kubernetes.io/service-name: dns}}}}
addressType: IPv4
ports: [{{name: dns, port: 5353, protocol: UDP}}]
endpoints: [{endpoints}]
"""


@pytest.mark.acceptance(69, 85, 86)
def test_udp_clients_and_new_addresses(node: Node) -> None:
    """Through both processes: a UDP client with one source port is served once there is an endpoint, follows its
    replacement, and reaches the node port on an address that the node got just now."""

    def endpoints(*addresses: str) -> None:
        each = [f"{{addresses: [{address}], conditions: {{ready: true}}}}" for address in addresses]
        new = node.folder / "dns.new"
        new.write_text(DNS.format(endpoints=", ".join(each)))
        new.rename(node.folder / "files" / "dns.yaml")

    def answered(address: str, port: int, by: str) -> None:
        done = node.run([sys.executable, "-c", CLIENT, address, str(port), by])
        assert done.returncode == 0, done.stderr

    node.sh("ip address add 192.0.2.11/32 dev lo && ip address add 192.0.2.12/32 dev lo")
    node.sh("ip route add 10.96.0.0/16 dev eth0")
    node.background(ECHO)
    endpoints()
    running = node.start(more=("--set", "node_port_addresses=192.0.2.0/24,198.51.100.0/24"))
    try:
        early = node.popen([sys.executable, "-c", CLIENT, "10.96.0.10", "53", "192.0.2.11"])
        endpoints("192.0.2.11")
        assert early.wait(60) == 0
        endpoints("192.0.2.12")
        answered("10.96.0.10", 53, "192.0.2.12")
        node.sh("ip address add 198.51.100.1/24 dev eth0")
        answered("198.51.100.1", 30053, "192.0.2.12")
        endpoints("192.0.2.11")
        answered("198.51.100.1", 30053, "192.0.2.11")
        assert 'deleted_entries_total{ip_family="IPv4"} 0.0' not in node.get("http://127.0.0.1:10249/metrics")
    finally:
        stop(running)


def test_another_mode_takes_over(node: Node) -> None:
    """An agent in another mode programs everything, and only then what the one before left goes."""
    stop(node.start())
    assert "table ip meshlib" in node.sh("nft list tables")
    node.sh(
        "sysctl -qw net.ipv4.ip_unprivileged_port_start=0"
    )  # it has no capability, and the Service port 80
    more = ("--set", "mode=userspace", "--set", "listen_addresses=127.0.0.1")
    running = node.start(more=more)
    try:
        assert running.stderr is not None
        events = (json.loads(line) for line in running.stderr)
        gone = next(event for event in events if event["event"] == "leftovers")
        assert (gone["mode"], gone["failed"]) == ("nftables", 0)
        assert "meshlib" not in node.sh("nft list tables")
        pages = node.get("http://127.0.0.1:10249/metrics")
        assert 'meshlib_agent_leftovers_removed_total{mode="nftables"}' in pages
    finally:
        stop(running)


def test_rules_of_iptables_go_with_their_mode(node: Node) -> None:
    """Another mode that is named removes them after its own are there, and who runs programs for it ends then;
    cleaning up removes them whatever mode is set."""
    stop(node.start(more=("--set", "mode=iptables")))
    assert "MESHLIB-IN" in node.sh("iptables-save")
    running = node.start()
    try:
        assert running.stderr is not None
        events = (json.loads(line) for line in running.stderr)
        gone = next(event for event in events if event["event"] == "leftovers")
        assert (gone["mode"], gone["failed"]) == ("iptables", 0)
        assert "MESHLIB" not in node.sh("iptables-save")
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        wait_for(lambda: len(children.read_text().split()) == 1, what="the programmer to be alone")
    finally:
        stop(running)
    assert node.agent("cleanup").returncode == 0
    stop(node.start(more=("--set", "mode=iptables")))
    assert '["+","mode",["iptables",4]]' in (node.folder / "state" / "ledger").read_text()
    assert node.agent("cleanup").returncode == 0
    assert "MESHLIB" not in node.sh("iptables-save")
    assert LedgerFile(node.folder / "state" / "ledger", read_only=True).ledger.owned == set()
