"""Fork with used httpx clients: both sides go on, the parent's connections are untouched, its locks stop no child.

Each in a process of its own, over each wire; requests are counted where they arrive.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.components.backends import Backends

#: HTTP/2 goes over httpcore with either wire.
WAYS = pytest.mark.parametrize(
    ("wire", "kind"),
    [("fast", "http"), ("fast", "https"), ("fast", "h2"), ("httpcore", "http"), ("httpcore", "https")],
    indirect=["wire"],
)

ROOT = Path(__file__).resolve().parents[2]

#: Used clients of both colours. ``kind``: http, https (HTTP/1.1) or h2 (over TLS). ``seen``: the connections that the
#: clients got their replies on, by backend and number.
CLIENTS = """
import asyncio, gc, json, os, signal, ssl, sys, threading
kind, loops, target, ca = sys.argv[1:]
import httpx
from meshlib.clients.httpx import AsyncMeshTransport, MeshTransport
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh

if loops == "uvloop":
    import uvloop
    new_loop, run_async = uvloop.new_event_loop, uvloop.run
else:
    new_loop, run_async = asyncio.new_event_loop, asyncio.run
url = ("http" if kind == "http" else "https") + "://orders.shop.svc"
options = {
    "verify": ssl.create_default_context(cadata=ca) if ca else False,
    "http2": kind == "h2",
    "limits": httpx.Limits(keepalive_expiry=600),  # nothing closes by itself while this runs
}
mesh = Mesh(config=load_config({"picker": "round_robin"}))
client = httpx.Client(transport=MeshTransport(target, mesh=mesh, **options))
aclient = httpx.AsyncClient(transport=AsyncMeshTransport(target, mesh=mesh, **options))
seen = set()

def note(reply, body):
    assert reply.http_version == ("HTTP/2" if kind == "h2" else "HTTP/1.1")
    seen.add((reply.headers["x-backend"], reply.headers["x-connection"]))
    return reply.content != body

def sync(who, count):
    wrong = 0
    for number in range(count):
        body = f"{who}/{number}".encode()
        wrong += note(client.post(url + "/echo", content=body), body)
    return wrong

async def several(who, count):
    async def one(number):
        body = f"{who}/async/{number}".encode()
        return note(await aclient.post(url + "/echo", content=body), body)
    wrong = 0
    for start in range(0, count, 9):  # in turn over three endpoints: three connections to each serve all of them
        wrong += sum(await asyncio.gather(*(one(n) for n in range(start, start + 9))))
    return wrong

def both(who):
    return sync(who, 30) + run_async(several(who, 18))

loop = new_loop()
assert sync("before", 9) == 0
assert loop.run_until_complete(several("before", 18)) == 0
"""

BOTH_GO_ON = (
    CLIENTS
    + """
read, write = os.pipe()
child = os.fork()
if child == 0:
    try:
        result = {"wrong": both("child")}
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(both("grandchild"))
        client.close()
        run_async(aclient.aclose())
        result["grandchild"] = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
    except BaseException as error:
        result = {"error": repr(error)}
    os.write(write, json.dumps(result).encode())
    os._exit(0)
os.close(write)
mine = {"wrong": sync("parent", 30) + loop.run_until_complete(several("parent", 18))}
with os.fdopen(read) as pipe:
    theirs = json.loads(pipe.read())
os.waitpid(child, 0)
before = set(seen)
mine["afterwards"] = sync("later", 9) + loop.run_until_complete(several("later", 9))
mine["new connections"] = len(seen - before)
loop.run_until_complete(aclient.aclose())
client.close()
mesh.close()
print(json.dumps({"parent": mine, "child": theirs}))
"""
)

#: Children that never use what they inherited, and leave in different ways; each is waited for.
LEAVING = (
    CLIENTS
    + """
def dropped():
    global client, aclient, mesh
    client = aclient = mesh = None
    gc.collect()
    os._exit(0)

def dropped_with_another_loop():
    global aclient
    aclient = None
    async def collect():
        gc.collect()
        await asyncio.sleep(0)
    run_async(collect())
    os._exit(0)

def ended():
    sys.exit(0)

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

result = {}
for leave in (dropped, dropped_with_another_loop, ended, killed):
    before = set(seen)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        leave()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    wrong = sync(leave.__name__, 6) + loop.run_until_complete(several(leave.__name__, 9))
    # The control thread's loop still hears: a target that is new to it.
    mesh.target("static:///127.0.0.9:1" + str(len(result))).acquire(20).done()
    result[leave.__name__] = [code, wrong, len(seen - before)]
loop.run_until_complete(aclient.aclose())
client.close()
mesh.close()
print(json.dumps(result))
"""
)

#: Every lock of meshlib and of httpcore's pools is held by another thread at the fork, which also happens in the middle
#: of a response. Locks are recorded as they are made; CPython makes them in C, so there is no list to ask.
LOCKS = """
import sys, threading
made, real = [], threading.Lock
def recording():
    lock, frame = real(), sys._getframe(1)
    while frame and frame.f_globals.get("__name__") in ("threading", "httpcore._synchronization"):
        frame = frame.f_back
    if frame and frame.f_globals.get("__name__", "").startswith(("meshlib.", "httpcore._sync.connection_pool")):
        made.append(lock)
    return lock
threading.Lock = recording
""" + (
    CLIENTS
    + """
stream = client.stream("GET", url + "/stream/3/0")
reply = stream.__enter__()
parts = reply.iter_raw()
first = next(parts)
from meshlib.runtime import exporters
made.remove(exporters._gate)  # a fork waits for this one, before it is one
held, release = threading.Event(), threading.Event()
def hold():
    taken = [lock for lock in list(made) if lock.acquire(timeout=5)]
    held.set()
    release.wait(60)
    for lock in taken:
        lock.release()
thread = threading.Thread(target=hold)
count = len(made)
thread.start()
held.wait(60)
child = os.fork()
if child == 0:
    signal.alarm(40)
    stream.__exit__(None, None, None)
    wrong = both("child")
    client.close()
    run_async(aclient.aclose())
    mesh.close()
    with httpx.Client(transport=MeshTransport(target, mesh=Mesh(), **options)) as other:
        wrong += other.post(url + "/echo", content=b"other").content != b"other"
    os._exit(wrong)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
release.set()
thread.join()
rest = b"".join(parts)
stream.__exit__(None, None, None)
backend = reply.headers["x-backend"]
result = {
    "locks": count > 5,
    "child": code,
    "stream": (first + rest).decode() == "".join(f"{backend} {n}\\n" for n in range(3)),
    "parent": sync("after", 9) + loop.run_until_complete(several("after", 9)),
}
loop.run_until_complete(aclient.aclose())
client.close()
mesh.close()
print(json.dumps(result))
"""
)


def run(script: str, backends: Backends, kind: str, loops: str = "asyncio") -> tuple[Any, list[Any]]:
    """What the program prints, and the servers. It writes nothing to stderr."""
    servers = backends.http(3, tls="orders.shop.svc" if kind != "http" else None)
    target = "static:///" + ",".join(server.address for server in servers)
    ca = backends.ca_pem.decode() if kind != "http" else ""
    # Python 3.12 and later warn about fork with threads; that it works all the same is what is shown here.
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, kind, loops, target, ca],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout), servers


@WAYS
def test_both_sides_go_on(backends: Backends, wire: str, kind: str) -> None:
    """Parent, child and grandchild use clients of both colours that were used before; the child closes its own. No
    wrong body, no error, and the parent's later requests go over the connections that it had."""
    result, servers = run(BOTH_GO_ON, backends, kind)
    assert result == {
        "parent": {"wrong": 0, "afterwards": 0, "new connections": 0},
        "child": {"wrong": 0, "grandchild": 0},
    }
    bodies = [got.body for server in servers for got in server.received]
    assert len(bodies) == len(set(bodies)) == 27 + 3 * 48 + 18


@pytest.mark.parametrize("loops", ["asyncio", "uvloop"])
@WAYS
def test_a_child_that_leaves_takes_nothing_along(
    backends: Backends, wire: str, kind: str, loops: str
) -> None:
    """However a child ends that inherited open connections: the parent's requests go on over the same ones."""
    if loops == "uvloop":
        pytest.importorskip("uvloop")
    result, _ = run(LEAVING, backends, kind, loops)
    assert result == {
        "dropped": [0, 0, 0],
        "dropped_with_another_loop": [0, 0, 0],
        "ended": [0, 0, 0],
        "killed": [-9, 0, 0],
    }


@pytest.mark.usefixtures("wire")
@pytest.mark.parametrize("kind", ["http", "https"])
def test_every_lock_is_held_at_the_fork(backends: Backends, kind: str) -> None:
    """The child ends the response it was reading, uses and closes the clients, and makes new ones; the parent reads the
    response to its end."""
    result, _ = run(LOCKS, backends, kind)
    assert result == {"locks": True, "child": 0, "stream": True, "parent": 0}
