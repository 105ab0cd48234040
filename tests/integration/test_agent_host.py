"""The host's addresses from a real kernel, in a network namespace of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from meshlib.agent.facts import Host
from meshlib.agent.host import host_of
from meshlib.agent.netlink.rtnl import HostAddress, Link


def inside(script: str) -> Any:
    """Run a program in a new network namespace; its last line is JSON."""
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_which_addresses_count() -> None:
    """Not loopback, not link-local, not those of the devices that hold virtual addresses."""
    links = [
        Link(1, "lo", True),
        Link(2, "eth0", True),
        Link(3, "kube-ipvs0", False),
        Link(4, "meshlib0", False),
    ]
    addresses = [
        HostAddress("127.0.0.1", 8, 1),
        HostAddress("192.0.2.7", 24, 2),
        HostAddress("2001:db8::7", 64, 2),
        HostAddress("fe80::1", 64, 2),
        HostAddress("10.96.0.1", 32, 3),
        HostAddress("10.96.0.2", 32, 4),
    ]
    assert host_of(addresses, links) == Host(("192.0.2.7", "2001:db8::7"))


@pytest.mark.kernel
@pytest.mark.acceptance(69)
def test_followed_without_privilege() -> None:
    """Told at the start and after each change, by a process without capabilities; bursts count as one."""
    found = inside("""
import asyncio, json, subprocess
from meshlib.agent.broker.privileges import capabilities, confine_parser
from meshlib.agent.host import HostWatch
ip = lambda *words: subprocess.run(["ip", *words], check=True)
ip("link", "set", "lo", "up")
ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
ip("address", "add", "192.0.2.1/24", "dev", "eth0")
# A helper with privileges, as this process gives up its own.
helper = subprocess.Popen(["sh"], stdin=subprocess.PIPE, text=True)
confine_parser()
told, said = [], []
async def main():
    news = asyncio.Event()
    def tell(host):
        told.append(host.addresses)
        news.set()
    async def expect(wanted):
        async with asyncio.timeout(20):
            while not told or told[-1] != wanted:
                await news.wait()
                news.clear()
    task = asyncio.create_task(HostWatch(tell, said.append).run())
    await expect(("192.0.2.1",))
    loop = asyncio.get_running_loop()
    began = loop.time()
    helper.stdin.write("ip address add 192.0.2.9/24 dev eth0\\nip address add 2001:db8::9/64 dev eth0 nodad\\n")
    helper.stdin.flush()
    await expect(("192.0.2.1", "192.0.2.9", "2001:db8::9"))
    helper.stdin.write("ip address del 192.0.2.9/24 dev eth0\\n")
    helper.stdin.flush()
    await expect(("192.0.2.1", "2001:db8::9"))
    task.cancel()
asyncio.run(main())
helper.stdin.close()
helper.wait()
print(json.dumps({"told": told[-1], "said": said, "capabilities": capabilities()}))
""")
    assert found == {"told": ["192.0.2.1", "2001:db8::9"], "said": [], "capabilities": 0}
