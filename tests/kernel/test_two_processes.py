"""Parser and programmer (decision D15): each tested by what it may not do, in a network namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.kernel


def inside(script: str) -> dict[str, Any]:
    """Run a program in a new network namespace; its last line is JSON."""
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_programmer_talks_netlink_only() -> None:
    """One capability; no other sockets, programs or namespaces; no way back."""
    found = inside("""
import ctypes, json, os, socket, subprocess
from meshlib.agent.broker.privileges import capabilities, confine_programmer
confine_programmer()
said = {"capabilities": capabilities()}
def attempt(name, function):
    try:
        function()
        said[name] = "done"
    except OSError as error:
        said[name] = error.errno
attempt("inet", lambda: socket.socket(socket.AF_INET))
attempt("inet6", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
attempt("unix", lambda: socket.socket(socket.AF_UNIX))
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
attempt("chown", lambda: os.chown("/proc/self/fd/1", 1, 1))
attempt("setuid", lambda: os.setuid(1))
libc = ctypes.CDLL(None, use_errno=True)
said["unshare"] = libc.unshare(0x40000000) and ctypes.get_errno()
# Ways around a filter of socket(): a ring of the kernel's that makes sockets, another process' descriptors. With these
# arguments the kernel itself would answer EFAULT and EBADF.
libc.syscall(425, 1, None)
said["io_uring"] = ctypes.get_errno()
libc.syscall(438, -1, 0, 0)
said["pidfd_getfd"] = ctypes.get_errno()
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
said["seccomp"], said["no_new_privs"] = status["Seccomp"].strip(), status["NoNewPrivs"].strip()
said["bounding"] = int(status["CapBnd"], 16)
print(json.dumps(said))
""")
    assert found["capabilities"] == found["bounding"] == 1 << 12
    assert found["netlink"] == "done"
    tried = ("inet", "inet6", "unix", "packet", "exec", "unshare", "setuid", "io_uring", "pidfd_getfd")
    refused = {name: found[name] for name in tried}
    assert set(refused.values()) == {1}, refused
    assert (found["seccomp"], found["no_new_privs"]) == ("2", "1")


def test_the_parser_may_nothing() -> None:
    """No capability: it programs through the programmer, within the rules, and not without it."""
    found = inside("""
import json, os, socket, threading
from meshlib.agent.backends.nftables.backend import NftablesBackend
from meshlib.agent.backends.nftables.transaction import TransactionSocket
from meshlib.agent.broker.privileges import capabilities, confine_parser
from meshlib.agent.broker.start import ProgrammerProcess
from meshlib.agent.desired import Place
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.programmer import Programmer
from meshlib.agent.netlink.messages import Request
from meshlib.agent.netlink.socket import NetlinkSocket
programmer = ProgrammerProcess(threading.Lock())
confine_parser()
said = {"capabilities": capabilities()}
try:
    NftablesBackend(4).probe()
    said["alone"] = NftablesBackend(4).probe().usable
    os.setgroups([1])
    said["setgroups"] = "done"
except PermissionError:
    said["setgroups"] = "refused"
backend = NftablesBackend(4, connect=lambda: TransactionSocket(programmer.broker.socket))
probe = backend.probe()
said["usable"], said["reason"] = probe.usable, probe.reason
place = Place(4, ("192.0.2.1",))
agent = Programmer(backend, place, Ledger(), lambda lines: None)
written = agent.write(0.0)
said["written"], said["operations"] = written.ok, len(written.plan)
said["again"] = len(agent.write(100.0).plan)
said["dump"] = len(backend.dump(4))
with NetlinkSocket(12, make=programmer.broker.socket) as netlink:
    try:
        netlink.request(Request(10 << 8 | 2, 0, b"\\2\\0\\0\\0"))
        said["flush"] = "done"
    except OSError as error:
        said["flush"] = str(error)
try:
    NetlinkSocket(9, make=programmer.broker.socket)
    said["audit"] = "done"
except OSError as error:
    said["audit"] = error.errno
status = dict(line.split(":", 1) for line in open(f"/proc/{programmer.pid}/status") if ":" in line)
said["programmer"] = int(status["CapEff"], 16)
os.kill(programmer.pid, 0)
programmer.close()
try:
    backend.dump(4)
    said["after"] = "done"
except OSError as error:
    said["after"] = type(error).__name__
print(json.dumps(said))
""")
    assert found["capabilities"] == 0
    assert (found["alone"], found["setgroups"]) == (False, "refused")
    assert (found["usable"], found["written"]) == (True, True), found["reason"]
    assert (found["operations"] > 0, found["again"], found["dump"]) == (True, 0, found["operations"])
    assert "does not pass on nf_tables table" in found["flush"]
    assert (found["audit"], found["programmer"], found["after"]) == (1, 1 << 12, "BrokerGone")


def test_the_programmer_ends_with_the_parser() -> None:
    """However the parser ends, no process with a capability stays behind."""
    found = inside("""
import json, os, select, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import os, threading, time
from meshlib.agent.broker.start import ProgrammerProcess
programmer = ProgrammerProcess(threading.Lock())
programmer.broker.socket(12)
print(programmer.pid, flush=True)
time.sleep(60)
'''], stdout=subprocess.PIPE, text=True)
pid = int(child.stdout.readline())
watch = os.pidfd_open(pid)
child.kill()
child.wait()
ready = select.select([watch], [], [], 20)[0]
print(json.dumps({"ended": bool(ready)}))
""")
    assert found == {"ended": True}
