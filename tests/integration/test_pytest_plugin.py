"""The pytest plugin as a user meets it: by its entry point, in a pytest of its own with files of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.components.pages import blocks

#: Entry points of other plugins.
OTHERS = ("xdist", "xdist.looponfail", "respx", "pytest_httpx", "anyio", "hypothesispytest", "timeout")
#: Part of every test file: threads of ours, and the sockets of this process.
LOOK = """
import os, threading
def ours():
    return [t.name for t in threading.enumerate() if t.name.startswith("meshlib-")]
def left():
    # those that do not end by themselves; on a slow machine the end of a thread takes its time
    for thread in threading.enumerate():
        if thread.name.startswith("meshlib-") and thread.name != "meshlib-chores":
            thread.join(60)
    return [name for name in ours() if name != "meshlib-chores"]
def sockets():
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            pass
    return found
"""


def run(folder: Path, *arguments: str, program: tuple[str, ...] = (), **environ: str) -> tuple[str, str]:
    """(the line of results, all output) of a pytest with warnings as errors, in its own process."""
    known = {
        name: value for name, value in os.environ.items() if not name.startswith(("MESHLIB_", "PYTEST_"))
    }
    done = subprocess.run(
        [
            *program,
            *(sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider"),
            # what a test needs none of takes most of its time
            *(word for name in OTHERS if name not in arguments for word in ("-p", f"no:{name}")),
            *(f"--rootdir={folder}", str(folder), *arguments),
        ],
        cwd=folder,
        env=known | environ,
        capture_output=True,
        text=True,
        timeout=90,
    )
    results = re.findall(r"^=+ (.*) in [\d.]+s.*=+$", done.stdout, re.MULTILINE)
    return (results[-1] if results else ""), done.stdout + done.stderr


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


def test_off_unless_asked(tmp_path: Path) -> None:
    """install() at import and in a test, a wrapped client, an explicit target, a channel: nothing starts, nothing is
    asked, and what cannot be bare says how to switch it on. A Mesh with a test's own resolvers works."""
    write(
        tmp_path,
        conftest="import meshlib\nmeshlib.install()\n",
        test_it=LOOK
        + """
import logging
import grpc._channel, httpx, meshlib, meshlib.grpc, pytest
from meshlib.testing import ManualResolver
client = meshlib.wrap(httpx.Client(transport=httpx.HTTPTransport(verify=False), trust_env=False))

def test_install(caplog):
    caplog.set_level(logging.INFO, "meshlib")
    meshlib.install()
    assert "install() does nothing: MESHLIB_DISABLED=tests" in caplog.text
    assert "_pool" not in vars(httpx.HTTPTransport)
    assert type(grpc._channel.Channel).__name__ == "ABCMeta"

def test_wrapped():
    before = sockets()
    with pytest.raises(httpx.ConnectError):
        client.get("http://orders.shop.svc:1/")
    assert (ours(), sockets()) == ([], before)

def test_explicit(monkeypatch):
    monkeypatch.setenv("MESHLIB_STRICT", "1")
    target = meshlib.Mesh().target("k8s:///orders.shop:80")
    with pytest.raises(meshlib.errors.NotSynced, match="off in tests: mark the test"):
        with target.pick(timeout=1.0):
            pass
    with meshlib.grpc.insecure_channel("k8s:///orders.shop:80") as channel:
        with pytest.raises(grpc.RpcError, match="off in tests"):
            channel.unary_unary("/x/y")(b"", timeout=5)
    assert ours() == []

def test_own_resolver():
    resolver = ManualResolver()
    resolver.endpoints("shop/orders", ["10.0.0.1:8080"])
    with meshlib.Mesh(resolvers={"k8s": resolver}) as mesh:
        with mesh.target("k8s:///orders.shop:80").pick(timeout=30.0) as endpoint:
            assert endpoint.address == "10.0.0.1"
    assert left() == []
""",
    )
    results, output = run(tmp_path)
    assert results == "4 passed", output
    assert "meshlib: off, unless a test asks for it" in output


def test_targets(tmp_path: Path) -> None:
    """Fakes, applications and ports answer for a Service, a host and a target; through install() at import, a client
    wrapped at import and an explicit transport; respx and pytest-httpx come first; afterwards all is off again."""
    write(
        tmp_path,
        app="""
import httpx, meshlib
meshlib.install()
wrapped = meshlib.wrap(httpx.Client(transport=httpx.HTTPTransport(verify=False), trust_env=False, timeout=30))
plain = httpx.Client(transport=httpx.HTTPTransport(verify=False), trust_env=False, timeout=30)
explicit = httpx.Client(transport=meshlib.MeshTransport("k8s:///orders.shop:http"), timeout=30)
""",
        test_it=LOOK
        + """
import app, httpx, meshlib, pytest, respx
from meshlib.testing import Reply, ScriptedEndpoint
URL = "http://orders.shop.svc/items"

def wsgi(environ, start_response):
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"wsgi " + environ["HTTP_HOST"].encode()]

async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"asgi " + scope["path"].encode()})

@pytest.fixture
def orders():
    with ScriptedEndpoint(Reply(200, b"scripted")) as made:
        yield made

@pytest.mark.parametrize("turn", [1, 2])
def test_three_ways(mesh_targets, orders, turn):
    mesh_targets["k8s:///orders.shop"] = orders
    for client in (app.plain, app.wrapped, app.explicit):
        assert client.get(URL).text == "scripted"
    assert [one.headers["host"] for one in orders.requests] == ["orders.shop.svc"] * 3
    assert ours() and repr(mesh_targets) == f"<mesh_targets: k8s:///orders.shop -> {orders.address}>"

def test_applications(mesh_targets):
    mesh_targets["orders.shop.svc"] = wsgi
    mesh_targets["orders.shop.svc:8080"] = asgi
    assert app.plain.get(URL).text == "wsgi orders.shop.svc"
    assert app.plain.get("http://orders.shop.svc:8080/items").text == "asgi /items"

def test_other_hosts(mesh_targets, orders):
    with pytest.raises(httpx.ConnectError):
        app.plain.get("http://orders:1/")
    mesh_targets["orders"] = orders
    mesh_targets["payments.example.com:8443"] = int(orders.address.rpartition(":")[2])
    assert app.plain.get("http://orders:1/").text == "scripted"
    assert app.wrapped.get("http://payments.example.com:8443/").text == "scripted"

def test_changes_count_at_once(mesh_targets, orders):
    with pytest.raises(httpx.ConnectError, match="no entry for it"):
        app.explicit.get(URL)
    mesh_targets["orders.shop.svc"] = []
    with pytest.raises(httpx.ConnectError, match="no endpoint"):
        app.explicit.get(URL)
    mesh_targets["orders.shop.svc"] = [orders]
    assert app.explicit.get(URL).text == "scripted"
    orders.reply(Reply(503), Reply(200, b"again"))
    assert [app.explicit.get(URL).status_code for _ in range(2)] == [503, 200]
    del mesh_targets["orders.shop.svc"]
    with pytest.raises(httpx.ConnectError, match="no entry for it"):
        app.explicit.get(URL)

def test_mocks_come_first(mesh_targets, orders):
    mesh_targets["orders.shop.svc"] = orders
    with respx.mock as router:
        router.get(URL).respond(418)
        assert {client.get(URL).status_code for client in (app.plain, app.wrapped, app.explicit)} == {418}
    assert app.plain.get(URL).text == "scripted"

def test_pytest_httpx(mesh_targets, orders, httpx_mock):
    mesh_targets["orders.shop.svc"] = orders
    httpx_mock.add_response(url=URL, text="mocked")
    assert app.plain.get(URL).text == "mocked"
    assert orders.requests == []

def test_asked_for_late(request, orders):
    request.getfixturevalue("mesh_targets")["orders.shop.svc"] = orders
    assert app.plain.get(URL).text == "scripted"

def test_off_again():
    assert left() == []  # but for who closes the idle connections of the clients above, and ends then
    assert "_pool" not in vars(httpx.HTTPTransport)
    with pytest.raises(httpx.ConnectError, match="off in tests"):
        app.explicit.get(URL)

def test_other_install_of_a_test(mesh_targets, orders):
    meshlib.uninstall()
    meshlib.install(grpc=False)
    mesh_targets["orders.shop.svc"] = orders
    assert app.plain.get(URL).text == "scripted"

def test_is_back_at_what_the_import_said(mesh_targets):
    meshlib.install()

def test_wrong_entries(mesh_targets):
    for what in ("k8s:///Orders:80", "a:b"):
        with pytest.raises(meshlib.errors.TargetError):
            mesh_targets[what] = 9000
    for where, kind in (("nowhere", ValueError), (70000, ValueError), (None, TypeError)):
        with pytest.raises(kind):
            mesh_targets["orders"] = where
    assert len(mesh_targets) == 0
""",
    )
    results, output = run(tmp_path, "-p", "respx", "-p", "pytest_httpx")
    assert results == "12 passed", output


def test_the_page(tmp_path: Path) -> None:
    """What docs/testing-your-service.md shows is a test that passes, block by block."""
    page = Path(__file__).parents[2] / "docs" / "testing-your-service.md"
    found = [block for block in blocks(page) if block.language == "python"]
    assert len(found) == 3
    for number, block in enumerate(found):
        write(tmp_path, **{f"test_{number}": block.text})
    results, output = run(tmp_path)
    assert results == "6 passed", output


def test_grpc(tmp_path: Path) -> None:
    """A channel made with grpc's own function, and an explicit one, reach a server of the test's."""
    write(
        tmp_path,
        test_it=LOOK
        + """
from concurrent import futures
import grpc, meshlib, meshlib.grpc, pytest
meshlib.install()

@pytest.fixture
def port():
    echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x", {"y": echo}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()

def test_it(mesh_targets, port):
    mesh_targets["orders.shop.svc:50051"] = port
    for make in (grpc.insecure_channel, meshlib.grpc.insecure_channel):
        with make("orders.shop.svc:50051") as channel:
            assert channel.unary_unary("/x/y")(b"7", timeout=60) == b"7"
""",
    )
    results, output = run(tmp_path)
    assert results == "1 passed", output


ON = (
    LOOK
    + """
import meshlib, pytest
def look():
    with meshlib.default_mesh().target("static:///127.0.0.1:9").pick(timeout=30.0) as endpoint:
        return endpoint.port
"""
)


def test_marker_and_configuration(tmp_path: Path) -> None:
    """The marker is for one test, `meshlib = on` for all; meshlib run asks for it too; a wrong word is told."""
    write(
        tmp_path,
        test_it=ON
        + """
def test_off():
    with pytest.raises(meshlib.errors.NotSynced):
        look()

@pytest.mark.meshlib
def test_on():
    assert look() == 9
    meshlib.install()

def test_off_again():
    assert left() == []
    test_off()
""",
    )
    results, output = run(tmp_path, "--strict-markers")
    assert results == "3 passed", output
    write(tmp_path, test_it=ON + "def test_on():\n    assert look() == 9\n")
    for arguments, program, told in (
        (("-o", "meshlib=on"), (), "meshlib: on"),
        ((), (sys.executable, "-m", "meshlib", "run", "--"), "meshlib: on (meshlib run)"),
    ):
        results, output = run(tmp_path, *arguments, program=program)
        assert results == "1 passed", output
        assert told in output
    results, output = run(tmp_path, "-o", "meshlib=perhaps")
    assert "meshlib = 'perhaps'" in output
    assert "write on or off" in output
    assert "Traceback" not in output


def test_the_hard_switch_stays(tmp_path: Path) -> None:
    """MESHLIB_DISABLED=1 of the user's is not overruled silently, and is still there for the next program."""
    write(
        tmp_path,
        test_it="import os\n"
        "def test_asks(mesh_targets):\n    pass\n"
        "def test_still_there():\n    assert os.environ['MESHLIB_DISABLED'] == '1'\n",
    )
    results, output = run(tmp_path, MESHLIB_DISABLED="1")
    assert results == "1 passed, 1 error", output
    assert "MESHLIB_DISABLED is set, and this test asks for meshlib: unset it" in output


def test_workers_and_children(tmp_path: Path) -> None:
    """xdist's workers can switch it on too, and a program that a test starts finds it off, or on."""
    write(
        tmp_path,
        test_it="""
import subprocess, sys
from meshlib.clients.autostart import disabled
PROGRAM = [sys.executable, "-c", "from meshlib.clients.autostart import disabled; print(disabled())"]
def child():
    return subprocess.check_output(PROGRAM, text=True).strip()
def test_off():
    assert disabled() and child() == "True"
def test_on(mesh_targets):
    assert not disabled() and child() == "False"
""",
    )
    results, output = run(tmp_path, "-p", "xdist", "-n", "2")
    assert results == "2 passed", output


def test_nothing_is_loaded_for_tests_without_meshlib(tmp_path: Path) -> None:
    """The plugin costs no import of a library that the tests do not use."""
    write(
        tmp_path,
        test_it="import sys\n"
        "def test_it():\n"
        "    heavy = {'httpx', 'httpcore', 'grpc', 'kubernetes', 'dns', 'msgspec', 'meshlib.runtime.mesh'}\n"
        "    assert 'meshlib.testing.pytest_plugin' in sys.modules\n"
        "    assert not heavy & set(sys.modules)\n"
        "    ours = [name for name in sys.modules if name.split('.')[0] == 'meshlib']\n"
        "    assert len(ours) < 12, ours\n",
    )
    results, output = run(tmp_path)
    assert results == "1 passed", output


def test_without_pytest() -> None:
    """Nothing of meshlib but the plugin needs pytest."""
    program = (
        "import sys\n"
        "sys.modules['pytest'] = None\n"
        "from meshlib.testing import FakeClock, ManualResolver, MeshTargets, ScriptedEndpoint, FakeApiServer\n"
        "import meshlib.testing\n"
        "assert set(meshlib.testing.__all__) <= set(dir(meshlib.testing))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_unknown_name_of_the_package() -> None:
    """As of any module."""
    import meshlib.testing

    with pytest.raises(AttributeError, match="has no attribute 'FakeClick'"):
        meshlib.testing.FakeClick  # noqa: B018
