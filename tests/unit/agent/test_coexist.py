"""Beside kube-proxy: refused, unless told; by what it is noticed, in network namespaces of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from meshlib.agent.coexist import OtherProxy, check, running_mode
from meshlib.agent.settings import AgentSettings
from meshlib.errors import ConfigError

NOTICED = ("device kube-ipvs0",)


def test_refused_unless_told() -> None:
    """Alone: fine. Beside kube-proxy: only for Services that it ignores, or when it is being replaced."""
    check(AgentSettings(), ())
    with pytest.raises(OtherProxy, match=r"device kube-ipvs0.*handover from-kube-proxy"):
        check(AgentSettings(), NOTICED)
    with pytest.raises(OtherProxy, match="set beside_kube_proxy = true"):
        check(AgentSettings(service_proxy_name="meshlib"), NOTICED)
    check(AgentSettings(service_proxy_name="meshlib", beside_kube_proxy=True), NOTICED)
    check(AgentSettings(take_over=True, mode="nftables"), NOTICED)
    check(AgentSettings(take_over=True, mode="iptables"), ("chain KUBE-SERVICES in table nat (IPv4)",))
    for mode in ("auto", "ipvs", "iptables"):
        with pytest.raises(OtherProxy, match="set mode = nftables until it is gone"):
            check(AgentSettings(take_over=True, mode=mode), NOTICED)
    with pytest.raises(ConfigError, match="contradicts"):
        AgentSettings(service_proxy_name="meshlib", beside_kube_proxy=True, take_over=True)


@pytest.mark.parametrize(
    ("body", "headers", "mode"),
    [
        (b"ipvs", {}, "ipvs"),
        (b"nftables", {"X-Meshlib-Mode": "nftables"}, ""),
        (b"<html>hello", {}, ""),
    ],
)
def test_a_running_one_says_its_mode(body: bytes, headers: dict[str, str], mode: str) -> None:
    """kube-proxy's answer counts; ours, and anybody else's, does not."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        assert running_mode(("127.0.0.1", server.server_port)) == mode
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert running_mode(("127.0.0.1", server.server_port)) == ""


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("made", "sign"),
    [
        ("ip link add kube-ipvs0 type veth peer name other", "device kube-ipvs0"),
        ("nft add table ip6 kube-proxy", "nftables table kube-proxy (IPv6)"),
        (
            "nft add table ip nat; nft add chain ip nat KUBE-SERVICES",
            "chain KUBE-SERVICES in table nat (IPv4)",
        ),
        # kubelet's own chain is no proxy
        ("nft add table ip mangle; nft add chain ip mangle KUBE-KUBELET-CANARY", None),
    ],
)
def test_traces_in_a_kernel(made: str, sign: str | None) -> None:
    """Its device, its table, its chain, each found through netlink; not what kubelet leaves."""
    script = (
        "import json, subprocess\n"
        "from meshlib.agent.coexist import traces\n"
        f"subprocess.run({made!r}, shell=True, check=True)\n"
        "print(json.dumps(traces()))\n"
    )
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ([sign] if sign else [])
