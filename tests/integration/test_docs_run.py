"""Every Python block and every command of the pages runs as it is written, against real servers where it names some.

The blocks of one page run in order in one process of their own, with warnings as errors; functions called ``test_*``
are called, as pytest would.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from meshlib.cli.app import meshlib
from meshlib.cli.doctor.place import _DOWNWARD
from meshlib.discovery.kubernetes.rbac import Subject, role_yaml
from tests.components.backends import Backends, GrpcBackend, HttpBackend
from tests.components.kube import KubeCluster

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])

#: Pages whose Python needs a cluster -> what must hold after it.
CLUSTER = {
    "README.md": 'assert orders.Get(GetRequest(id=7)).endswith(b":7")',
    "docs/quickstart.md": 'assert stub.Get(GetRequest(id=7)).endswith(b":7")',
    "docs/clients-httpx.md": 'assert client.get("http://orders/items").json().startswith("http-")',
    "docs/clients-grpc.md": 'assert order.endswith(b":7")',
}
ALONE = ("docs/extending.md", "docs/how-it-works.md", "docs/testing.md", "docs/transparent.md")
EMPTY: Mapping[str, str] = {}

#: What the pages take for granted: generated code, a function of the reader's, and names from the page's prose.
GIVEN = """
import ast, asyncio, inspect, sys, types

class OrdersStub:
    def __init__(self, channel):
        self.Get = channel.unary_unary("/test.Echo/UnaryUnary", request_serializer=lambda request: b"7")

class GetRequest:
    def __init__(self, id):
        assert id == 7

def connect_to(address, port):
    assert (address, port) in endpoints

generated = types.ModuleType("shop_pb2_grpc")
generated.OrdersStub = OrdersStub
sys.modules["shop_pb2_grpc"] = generated
"""
RUN = """
def run(block):
    code = compile(block, "a block of the page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, names))
    else:
        exec(code, names)
    for name in [name for name in names if name.startswith("test_")]:
        test = names.pop(name)
        for mark in getattr(test, "pytestmark", ()):
            (parameter, values) = mark.args
            for value in values:
                test(**{parameter: value})
        if not hasattr(test, "pytestmark"):
            asyncio.run(test()) if inspect.iscoroutinefunction(test) else test()

for block in blocks:
    run(block)
"""


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def run(
    page: str,
    environ: Mapping[str, str],
    *,
    after: str = "",
    replace: Mapping[str, str] = EMPTY,
    **given: object,
) -> str:
    """Run a page's Python; ``given`` are further names, ``after`` is run behind the last block."""
    known = "".join(f"{name} = {value!r}\n" for name, value in given.items())
    found = [*blocks(ROOT / page, "python"), after]
    for old, new in replace.items():
        found = [block.replace(old, new) for block in found]
    program = f"{GIVEN}{known}names = dict(globals())\nblocks = {found!r}\n{RUN}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


class Shop:
    """The Service ``orders`` in the namespace ``shop`` of a real cluster, in front of real servers."""

    def __init__(self, kube: KubeCluster, backends: Backends, folder: Path) -> None:
        self.http: list[HttpBackend] = backends.http(2)
        self.grpc: list[GrpcBackend] = backends.grpc(2)
        for backend in self.http:
            backend.name = json.dumps(backend.name)  # its answer: the pages read JSON
        kube.create_namespace("shop")
        kube.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "orders", "namespace": "shop"},
                "spec": {"ports": [{"name": "http", "port": 80}, {"name": "grpc", "port": 9090}]},
            }
        )
        for name, members in (("http", self.http), ("grpc", self.grpc)):
            ports = [{"name": name, "port": members[0].port, "protocol": "TCP"}]
            kube.put_slice("shop", f"orders-{name}", "orders", [one.host for one in members], ports)
        self.kubeconfig = str(kube.write_kubeconfig(folder / "config"))
        self.environ = {
            "MESHLIB_DISCOVERY": json.dumps({"k8s": {"kubeconfig": self.kubeconfig}}),
            "MESHLIB_ADDRESS_ALLOW_LOOPBACK": "true",
            "MESHLIB_SYNC_TIMEOUT": "20",  # a slow machine is not what is tested
        }


@pytest.fixture
def shop(kube_v1: KubeCluster, backends: Backends, tmp_path: Path) -> Shop:
    return Shop(kube_v1, backends, tmp_path)


@pytest.fixture
def registry() -> Iterator[str]:
    """What docs/extending.md asks: an HTTP server with lists of addresses."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'["10.0.0.1:8080", "127.0.0.1:80", "nonsense"]'
            self.send_response(200 if self.path == "/services/orders" else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """No access log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_page_with_python_is_run() -> None:
    """A new page, or the first block on an old one, belongs to one of the two tests below."""
    found = {path.relative_to(ROOT).as_posix() for path in PAGES if blocks(path, "python")}
    assert found == {*CLUSTER, *ALONE}


@pytest.mark.parametrize("page", CLUSTER)
def test_python_of_a_page_with_a_cluster(page: str, shop: Shop) -> None:
    """Real API server, real backends: what a reader copies gets answers."""
    endpoints = [(one.host, one.port) for one in shop.http]
    patient = {"timeout=2)": "timeout=40)"}  # half of it may be spent on the first answer of the API server
    run(page, shop.environ, after=CLUSTER[page], replace=patient, endpoints=endpoints)
    assert sum(one.requests for one in (*shop.http, *shop.grpc)) >= 1


@pytest.mark.parametrize("page", ALONE)
def test_python_of_a_page_alone(page: str, registry: str) -> None:
    """Nothing but loopback is needed; the plugin resolver of docs/extending.md skips what it must not use."""
    told = run(page, {}, replace={"127.0.0.1:8500": registry})
    if page == "docs/extending.md":
        assert told == "10.0.0.1 8080\n"


def commands(text: str) -> Iterator[list[str]]:
    """The ``meshlib`` commands of a text, without what they are piped into."""
    for line in text.splitlines():
        match = re.match(r"\s*(?:kubectl exec \S+ -- python -m )?meshlib (\w.*)", line)
        if match and not match[1].startswith("COMMAND"):
            words = shlex.split(match[1], comments=True)
            yield words[: words.index("|")] if "|" in words else words


def shown() -> dict[str, list[str]]:
    """Every command of the pages' blocks and of --help, by its text."""
    texts = ["\n".join(re.findall(r"```\n(.*?)```", path.read_text(), re.DOTALL)) for path in PAGES]
    for name in ("check-url", "demo", "doctor", "rbac", "resolve"):
        texts.append(CliRunner().invoke(meshlib, [name, "--help"]).output.partition("Examples:")[2])
    found = {}
    for text in texts:
        for words in commands(text):
            found[shlex.join(words).partition("  ")[0]] = words
    return found


@pytest.mark.parametrize("words", shown().values(), ids=shown().keys())
def test_commands_of_the_pages(words: list[str], shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command line that a page or --help shows is one that works; agent, demo and --watch have their own tests."""
    for name, value in shop.environ.items():
        monkeypatch.setenv(name, value)
    if words[0] in ("agent", "demo") or "--watch" in words:
        words = [*words, "--help"]
    result = CliRunner().invoke(meshlib, words)
    assert result.exit_code in ((0, 1) if words[0] in ("check-url", "doctor") else (0,)), result.output
    assert not isinstance(result.exception, Exception), result.output
    if words[0] == "resolve" and "--help" not in words:
        assert shop.http[0].host in result.output


def test_downward_api_of_the_page_is_that_of_doctor() -> None:
    """The page and doctor give the same lines to paste, and the example's deployment has the first of them."""
    (block,) = blocks(ROOT / "docs/kubernetes.md", "yaml")
    assert yaml.safe_load(block) == yaml.safe_load(_DOWNWARD)


def test_rights_of_the_example_are_those_of_rbac() -> None:
    """examples/fastapi_service/deployment.yaml grants what `meshlib rbac` prints, no more."""
    role, binding = yaml.safe_load_all(role_yaml("shop", Subject("shop", "web")))
    example = list(yaml.safe_load_all((ROOT / "examples/fastapi_service/deployment.yaml").read_text()))
    assert sorted(map(str, role["rules"])) == sorted(
        str(rule) for one in example if one["kind"] == "Role" for rule in one["rules"]
    )
    (bound,) = (one for one in example if one["kind"] == "RoleBinding")
    assert bound["subjects"] == binding["subjects"]
