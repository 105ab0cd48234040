"""Fork, exit and import, each in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from tests.components.process import wait_for

#: Longest time an interpreter may need here in all, seconds: start, work, exit. Only a hang reaches it.
PATIENCE = 60


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter with warnings shown; the test looks at its output and exit code."""
    return subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def check(script: str, expected: str, *options: str) -> None:
    done = run(script, *options)
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.split() == expected.split()


def test_import_starts_and_loads_nothing() -> None:
    """No thread, no socket, and none of the big libraries."""
    check(
        """
        import sys, threading, os
        before = len(os.listdir("/proc/self/fd"))
        import meshlib
        heavy = {"httpx", "grpc", "kubernetes", "dns", "asyncio", "ssl", "msgspec", "click", "rich", "logging"}
        print(sorted(heavy & set(sys.modules)), threading.active_count(), len(os.listdir("/proc/self/fd")) - before)
        """,
        "[] 1 0",
    )


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and newer warn about any fork with threads
from meshlib.runtime.mesh import Mesh
mesh = Mesh()
handle = mesh.target("static:///127.0.0.2:80,127.0.0.3:80")
def picks(n=10):
    found = set()
    for _ in range(n):
        lease = handle.acquire(5)
        found.add(lease.endpoint.address)
        lease.done()
    return sorted(found)
"""


def test_child_and_parent_go_on_after_a_fork() -> None:
    """Both keep picking; the child builds its own control thread, the parent's is untouched."""
    check(
        FORK
        + """
import threading
picks()
pid = os.fork()
if pid == 0:
    ok = len(picks(50)) == 2 and sum(t.name == "meshlib-control" for t in threading.enumerate()) == 1
    os._exit(0 if ok else 9)
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status), len(picks(50)))
mesh.close()
""",
        "0 2",
    )


def test_a_child_of_a_child_works_too() -> None:
    """The rebuilding is not a one-time trick."""
    check(
        FORK
        + """
picks()
pid = os.fork()
if pid == 0:
    picks()
    inner = os.fork()
    if inner == 0:
        os._exit(0 if len(picks(50)) == 2 else 9)
    _, status = os.waitpid(inner, 0)
    os._exit(os.waitstatus_to_exitcode(status))
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status))
mesh.close()
""",
        "0",
    )


def test_fork_while_every_lock_is_held() -> None:
    """Another thread of the parent holds each of our locks at the fork: the child still works."""
    check(
        FORK
        + """
import threading
from meshlib.runtime import process, default
from meshlib.runtime.observing import _observer
picks()
live = handle.live
locks = [mesh._lock, handle._lock, process._lock, default._default_lock, live.cell._lock, mesh._urls._lock,
         *(s.lock for s in live.balancer.subchannels), _observer.counters._lock, _observer.hooks._lock]
held, release = threading.Event(), threading.Event()
def hold():
    for lock in locks:
        lock.acquire()
    held.set()
    release.wait(30)
    for lock in locks:
        lock.release()
thread = threading.Thread(target=hold)
thread.start()
held.wait(30)
pid = os.fork()
if pid == 0:
    import signal
    signal.alarm(20)
    with Mesh() as other:
        other.target("static:///127.0.0.9:80").acquire(5).done()
    default.default_mesh()
    os._exit(0 if len(picks(50)) == 2 else 9)
_, status = os.waitpid(pid, 0)
release.set()
thread.join()
print(os.waitstatus_to_exitcode(status), len(picks()))
mesh.close()
""",
        "0 2",
    )


def test_fork_inside_a_running_loop() -> None:
    """The parent's loop keeps its events; the child starts its own."""
    check(
        FORK
        + """
import asyncio
async def main():
    (await handle.acquire_async(5)).done()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if len(picks(50)) == 2 else 9)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    (await handle.acquire_async(5)).done()
    print(os.waitstatus_to_exitcode(status))
asyncio.run(main())
mesh.close()
""",
        "0",
    )


def test_the_seed_serves_the_child_before_its_own_watch_answers() -> None:
    """The last snapshot of the parent is used at once; the child's own view replaces it."""
    check(
        """
        import os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from meshlib.runtime.mesh import Mesh
        from meshlib.testing.manual import ManualResolver
        resolver = ManualResolver("k8s")
        resolver.endpoints("shop/orders", ["10.0.0.1:80"])
        mesh = Mesh(resolvers={"k8s": resolver})
        handle = mesh.target("k8s:///orders.shop:80")
        handle.acquire(5).done()
        pid = os.fork()
        if pid == 0:
            resolver._last.clear()
            lease = handle.try_acquire()
            os._exit(0 if lease and lease.endpoint.address == "10.0.0.1" else 9)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status))
        mesh.close()
        """,
        "0",
    )


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pools of every start method pick in their workers, and end."""
    script = tmp_path_factory.mktemp("mp") / "work.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            from meshlib.runtime.default import default_mesh

            def pick(_):
                with default_mesh().target("static:///127.0.0.2:80,127.0.0.3:80").pick(timeout=5) as endpoint:
                    return endpoint.port

            if __name__ == "__main__":
                pick(0)
                with multiprocessing.get_context({method!r}).Pool(2) as pool:
                    print(*pool.map(pick, range(6)))
                default_mesh().close()
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.split() == ["80"] * 6


def test_exit_with_everything_pending() -> None:
    """A watch that hangs, a thread that waits, a helper in a blocked call: exit is clean, keeps its code, and takes at
    most 1.5 s longer than that of the same program with nothing pending."""
    script = """
    import sys, threading, time
    from meshlib.runtime import process
    from meshlib.runtime.config import load_config
    from meshlib.runtime.mesh import Mesh
    from meshlib.testing.manual import ManualResolver
    mesh = Mesh(config=load_config({"sync_timeout": 60}), resolvers={"k8s": ManualResolver("k8s")})
    if PENDING:
        handle = mesh.target("k8s:///orders.shop:80")
        assert handle.try_acquire() is None
        threading.Thread(target=handle.acquire, daemon=True).start()
        control = process._runtime.control
        entered = threading.Event()
        def hang():
            entered.set()
            time.sleep(3600)
        control.call(lambda: control.spawn(control.run_blocking(hang), name="hang"))
        entered.wait(10)
    print(time.monotonic(), flush=True)
    sys.exit(7)
    """
    took = {}
    for pending in (False, True):
        done = run(script.replace("PENDING", str(pending)), "-W", "default")
        took[pending] = time.monotonic() - float(done.stdout)
        assert (done.returncode, done.stderr) == (7, "")
    assert took[True] - took[False] < 1.5


def test_use_in_an_exit_handler_does_not_hang() -> None:
    """A last request in atexit: an answer or a clear error, never a hang or a traceback of ours."""
    check(
        """
        import atexit
        from meshlib.errors import MeshError
        from meshlib.runtime.mesh import Mesh
        mesh = Mesh()
        handle = mesh.target("static:///127.0.0.2:80")
        def last():
            try:
                handle.acquire(5).done()
                print("served")
            except (MeshError, RuntimeError) as error:
                print("refused", type(error).__name__)
        atexit.register(last)
        handle.acquire(5).done()
        """,
        "served",
    )


def test_exit_with_real_connections_open(kube_v1: Any, backends: Any, tmp_path: Path) -> None:
    """Watches on a real API server, pooled HTTP connections, gRPC channels and a request without an answer: the exit is
    clean, silent and keeps its code."""
    (http,) = backends.http(1)
    (rpc,) = backends.grpc(1)
    kube_v1.create_service("default", "left-open", selector={})
    kube_v1.put_slice("default", "left-open-1", "left-open", ["10.0.0.1"])
    http.delay = 3600.0
    script = f"""
    import sys, threading, httpx, meshlib
    from meshlib import grpc as mesh_grpc
    k8s = {{"kubeconfig": {str(tmp_path / "kubeconfig")!r}}}
    mesh = meshlib.Mesh(config=meshlib.load_config({{"discovery": {{"k8s": k8s}}, "sync_timeout": 30.0}}))
    mesh.target("k8s:///left-open.default:http").acquire(60)
    channel = mesh_grpc.insecure_channel("static:///{rpc.address}", mesh=mesh)
    channel.unary_unary("/test.Echo/UnaryUnary")(b"", timeout=30)
    client = httpx.Client(transport=meshlib.MeshTransport("static:///{http.address}", mesh=mesh), timeout=None)
    threading.Thread(target=client.get, args=("http://slow/",), daemon=True).start()
    sys.stdin.readline()
    sys.exit(7)
    """
    kube_v1.write_kubeconfig(tmp_path / "kubeconfig")
    running = subprocess.Popen(
        [sys.executable, "-W", "default", "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: http.in_flight == 1 or running.poll() is not None, timeout=PATIENCE)
        _, errors = running.communicate("\n", timeout=PATIENCE)
    finally:
        running.kill()
        running.wait()
    assert (running.returncode, errors) == (7, "")


def test_ctrl_c_in_the_middle_leaves_nothing_counted() -> None:
    """An interrupt while waiting for the first knowledge, for an HTTP answer and for a gRPC answer: no waiter and no
    request in flight stays behind, and the program goes on."""
    check(
        """
        import os, signal, socket, threading, time
        import httpx, meshlib
        from meshlib import grpc as mesh_grpc
        from meshlib.testing import ManualResolver

        armed = []  # only the first of several signals interrupts
        def interrupt(*_):
            if armed:
                armed.clear()
                raise KeyboardInterrupt
        signal.signal(signal.SIGINT, interrupt)

        def interrupted(call, busy):
            armed.append(True)
            def soon():
                while not busy():
                    time.sleep(0.001)
                while armed:  # one that comes just before the main thread waits in the kernel does not wake it
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.1)
            watcher = threading.Thread(target=soon)
            watcher.start()
            try:
                call()
            except KeyboardInterrupt:
                watcher.join()
                return True

        config = meshlib.load_config({"sync_timeout": 60.0})
        mesh = meshlib.Mesh(config=config, resolvers={"k8s": ManualResolver("k8s")})
        waiting = mesh.target("k8s:///orders.shop:80")
        entered = lambda: waiting.live is not None and waiting.live.cell._waiters
        print(interrupted(waiting.acquire, entered), len(waiting.live.cell._waiters))
        with socket.create_server(("127.0.0.1", 0)) as silent:
            target = f"static:///127.0.0.1:{silent.getsockname()[1]}"
            handle = mesh.target(target)
            flying = lambda: sum(one.inflight for one in handle.balancer.subchannels)
            with httpx.Client(transport=meshlib.MeshTransport(target, mesh=mesh), timeout=None) as client:
                print(interrupted(lambda: client.get("http://silent/"), flying), flying())
            with mesh_grpc.insecure_channel(target, mesh=mesh) as channel:
                print(interrupted(lambda: channel.unary_unary("/a/b")(b"", timeout=60), flying))
            while flying():
                time.sleep(0.001)
        mesh.close()
        print("end")
        """,
        "True 0 True 0 True end",
    )
