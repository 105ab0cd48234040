"""Every block of the pages runs as it is written, against real servers where it names some, or says why it cannot.

The Python of one page runs in order in one process of its own, with warnings as errors; functions called ``test_*``
are called, as pytest would. Commands of ``meshlib`` run in this process; of those that would not end, or look at the
host, the arguments are parsed. Settings are loaded, manifests parsed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import pytest
import trustme
import yaml
from click.testing import CliRunner

from meshlib.agent.load import load_settings
from meshlib.cli.app import meshlib
from meshlib.cli.doctor.place import _DOWNWARD
from meshlib.discovery.kubernetes.rbac import Subject, role_yaml
from meshlib.runtime.config import load_config
from tests.components.backends import Backends, GrpcBackend, HttpBackend
from tests.components.kube import KubeCluster
from tests.components.pages import PAGES, ROOT, SHELL, Block, Command, all_blocks, commands

BLOCKS = all_blocks()
PYTHON = [block for block in BLOCKS if block.language == "python" and not block.not_run]

#: Pages whose Python needs a cluster -> what must hold after it. All others need nothing but loopback.
CLUSTER = {
    "README.md": 'assert orders.Get(GetRequest(id=7)).endswith(b":7")',
    "docs/clients-grpc.md": 'assert order.endswith(b":7")',
    "docs/clients-httpx.md": 'assert client.get("http://orders/items").json().startswith("http-")',
    "docs/index.md": 'assert client.get("http://orders.shop.svc/items").json().startswith("http-")',
    "docs/processes.md": (
        "assert application({}, lambda *_: None)[0].startswith(b'\"http-')\n"
        'assert stock().startswith("http-")\n'
        "meshlib.uninstall()"
    ),
    "docs/quickstart.md": 'assert stub.Get(GetRequest(id=7)).endswith(b":7")',
}
ALONE = sorted({block.page for block in PYTHON} - CLUSTER.keys())
#: A slow machine is not what is tested: every bound on waiting is a minute, or half of it.
PATIENT = {"MESHLIB_SYNC_TIMEOUT": "60"}
PATIENTLY = {
    "timeout=1.0": "timeout=60.0",
    "timeout=2)": "timeout=60)",
    "timeout=5.0": "timeout=60.0",
    'ready(["k8s:///orders.shop:http"], mesh=mesh)': 'ready(["k8s:///orders.shop:http"], mesh=mesh, timeout=60.0)',
}

#: Commands that run here. The arguments of all others are parsed: they would not end (run, top, --watch), are about
#: the host (agent), or ask for workers that run (status); each has tests of its own.
RUN = ("check-url", "cost", "doctor", "rbac", "resolve")
#: Programs that a page may name although this kind of machine has nothing for them to talk to.
NOT_HERE = {
    "kubectl": "a cluster with nodes",
    "docker": "a container engine",
    "jq": "only reads what we print",
}
#: Exit codes that say something about the world and not about the command.
FINDINGS = {"check-url": (0, 1), "doctor": (0, 1)}
LANGUAGES = ("python", "toml", "yaml", "json", "text", *SHELL)

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

import httpx._config

for part in ("connect", "pool", "read", "write"):  # of clients to whom the page gives none
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, part, 60.0)

generated = types.ModuleType("shop_pb2_grpc")
generated.OrdersStub = OrdersStub
sys.modules["shop_pb2_grpc"] = generated
"""
RUNNER = """
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


def run(
    page: str,
    environ: Mapping[str, str],
    *,
    after: str = "",
    replace: Mapping[str, str] = PATIENTLY,
    **given: object,
) -> str:
    """Run a page's Python; ``given`` are further names, ``after`` is run behind the last block."""
    known = "".join(f"{name} = {value!r}\n" for name, value in given.items())
    found = [*(block.text for block in PYTHON if block.page == page), after]
    for old, new in replace.items():
        found = [block.replace(old, new) for block in found]
    program = f"{GIVEN}{known}names = dict(globals())\nblocks = {found!r}\n{RUNNER}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=110,
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
            **PATIENT,
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


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """The folder that docs/tls.md has under /etc/shop."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("frontend").private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    return tmp_path


def test_every_block_runs_or_says_why() -> None:
    """Each block is of a kind that a test below takes, and few say that they cannot be run."""
    assert [block.place for block in BLOCKS if block.language not in LANGUAGES] == []
    unrun = [block for block in BLOCKS if block.not_run]
    away = [one for block in SHELLS for one in commands(block) if one.words and one.words[0] in NOT_HERE]
    print(*(f"{block.place}: not run: {block.not_run}" for block in unrun), sep="\n")
    print(*(f"{one.place}: not run: {one}: {NOT_HERE[one.words[0]]}" for one in away), sep="\n")
    assert len(unrun) * 5 <= len(BLOCKS), "one block of five, at most, may be one that nothing runs"


@pytest.mark.parametrize("page", CLUSTER)
def test_python_of_a_page_with_a_cluster(page: str, shop: Shop) -> None:
    """Real API server, real backends: what a reader copies gets answers."""
    endpoints = [(one.host, one.port) for one in shop.http]
    run(page, shop.environ, after=CLUSTER[page], endpoints=endpoints)
    assert sum(one.requests for one in (*shop.http, *shop.grpc)) >= 1


@pytest.mark.parametrize("page", ALONE)
def test_python_of_a_page_alone(page: str, registry: str, certificates: Path) -> None:
    """Nothing but loopback is needed; the plugin resolver of docs/extending.md skips what it must not use."""
    here = {"127.0.0.1:8500": registry, "/etc/shop": str(certificates)}
    told = run(page, PATIENT, replace={**PATIENTLY, **here})
    if page == "docs/extending.md":
        assert told == "10.0.0.1 8080\n"


SHELLS = [block for block in BLOCKS if block.language in SHELL and not block.not_run]


def ours() -> dict[str, Command]:
    """Every command of ``meshlib`` on the pages and in --help, by its text."""
    found = {str(one): one for block in SHELLS for one in commands(block) if one.words[:1] == ("meshlib",)}
    for name in RUN:
        text = CliRunner().invoke(meshlib, [name, "--help"]).output.partition("Examples:")[2]
        lines = [line.strip() for line in text.splitlines() if re.match(r" +(meshlib|kubectl) \w", line)]
        shown = "\n".join(re.split(r" {2,}", line)[0] for line in lines)
        for one in commands(Block(f"{name} --help", 0, "", shown, "")):
            if one.words[0] == "meshlib":
                found.setdefault(str(one), one)
    return found


OURS = ours()


@pytest.mark.parametrize("text", OURS)
def test_commands_of_the_pages(text: str, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command line that a page or --help shows is one that works."""
    words = OURS[text].words[1:]
    for name, value in (*shop.environ.items(), *OURS[text].environ):
        monkeypatch.setenv(name, value)
    name = words[0] if words else ""
    printed = words[:2] == ("agent", "manifests")
    if not printed and (name not in RUN or "--watch" in words):
        assert parsed(words)
        return
    result = CliRunner().invoke(meshlib, list(words))
    assert result.exit_code in FINDINGS.get(name, (0,)), result.output
    assert not isinstance(result.exception, Exception), result.output
    if name == "resolve":
        assert shop.http[0].host in result.output


def parsed(words: tuple[str, ...]) -> click.Context:
    """The command's arguments as click takes them; an option that does not exist is an error."""
    name, command, rest = "meshlib", meshlib, list(words)
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        found = command.get_command(context, rest[0]) if rest else None
        assert found is not None, f"meshlib has no command {' '.join(words)!r}"
        name, command, rest = rest[0], found, rest[1:]
    try:
        return command.make_context(name, rest)
    except click.exceptions.Exit:  # --help
        return click.Context(command)


OTHERS = {
    f"{one.place} {one}": one for block in SHELLS for one in commands(block) if one.words[:1] != ("meshlib",)
}


@pytest.mark.parametrize("text", OTHERS)
def test_other_programs_of_the_pages(text: str) -> None:
    """make has the target, pip the distribution and its extra, python the file; gunicorn accepts its application."""
    program, *rest = OTHERS[text].words or ("export",)
    environ = dict(OTHERS[text].environ)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in rest if "=" not in word and word not in targets] == []
    elif program == "pip":
        assert_installable([word for word in rest[1:] if not word.startswith("-")])
    elif program == "python":
        assert (ROOT / rest[0]).is_file() or rest[0] == "-m"
    elif program == "gunicorn":
        done = subprocess.run(
            [sys.executable, "-m", "gunicorn", "--check-config", *rest],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
    else:
        assert program == "export" or program in NOT_HERE, "nothing runs this: say why above the block"
    known = load_config({}, environ={**environ})
    assert known.warnings == ()


def assert_installable(words: list[str]) -> None:
    """Ours with extras that exist, or what our own groups install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    known = " ".join(str(each) for group in project["dependency-groups"].values() for each in group)
    for word in words:
        name, _, extra = word.rstrip("]").partition("[")
        if name == "meshlib-sdk":
            assert {one for one in extra.split(",") if one} <= extras.keys(), word
        else:
            plugin = ROOT / "plugins" / name / "pyproject.toml"
            assert plugin.exists() or re.search(rf"(?:^| ){name}\b", known), word


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "toml" and not b.not_run], ids=lambda block: block.place
)
def test_settings_of_the_pages(block: Block, tmp_path: Path) -> None:
    """Settings of a process and of the agent load; a plugin's entry points are those that meshlib looks for."""
    path = tmp_path / "settings.toml"
    path.write_text(block.text)
    content = tomllib.loads(block.text)
    if "project" in content:
        assert {name.partition(".")[0] for name in content["project"]["entry-points"]} == {"meshlib"}
    elif "node-agent" in block.page:
        assert load_settings({}, {}, path)
    else:
        assert load_config(environ={}, file=path).sources


@pytest.mark.parametrize(
    "block",
    [b for b in BLOCKS if b.language in ("yaml", "json") and not b.not_run],
    ids=lambda block: block.place,
)
def test_data_of_the_pages(block: Block) -> None:
    """It is what it says it is, and not empty."""
    read = yaml.safe_load_all if block.language == "yaml" else lambda text: [json.loads(text)]
    assert all(list(read(block.text)))


def test_the_pod_with_a_token_of_its_own(kube_v1: KubeCluster) -> None:
    """docs/kubernetes.md: the API server takes it, and meshlib finds the three files where the volume has them."""
    text = next(b.text for b in BLOCKS if b.page == "docs/kubernetes.md" and "serviceAccountToken" in b.text)
    pod = yaml.safe_load(text)
    kube_v1.create_namespace("web")
    taken = kube_v1.request("POST", "/api/v1/namespaces/web/pods?dryRun=All", pod)
    (volume,) = taken["spec"]["volumes"]
    (container,) = taken["spec"]["containers"]
    paths = [
        item["path"]
        for source in volume["projected"]["sources"]
        for kind in source.values()
        for item in kind.get("items", [kind])
    ]
    assert sorted(paths) == ["ca.crt", "namespace", "token"]
    (mount,) = container["volumeMounts"]
    config = load_config(environ={one["name"]: one["value"] for one in container["env"]})
    assert config.discovery["k8s"]["service_account_dir"] == mount["mountPath"]


def test_downward_api_of_the_page_is_that_of_doctor() -> None:
    """The page and doctor give the same lines to paste, and the example's deployment has the first of them."""
    text = next(b.text for b in BLOCKS if b.page == "docs/kubernetes.md" and b.text.startswith("env:"))
    assert yaml.safe_load(text) == yaml.safe_load(_DOWNWARD)


def test_rights_of_the_example_are_those_of_rbac() -> None:
    """examples/fastapi_service/deployment.yaml grants what `meshlib rbac` prints, no more."""
    role, binding = yaml.safe_load_all(role_yaml("shop", Subject("shop", "web")))
    example = list(yaml.safe_load_all((ROOT / "examples/fastapi_service/deployment.yaml").read_text()))
    assert sorted(map(str, role["rules"])) == sorted(
        str(rule) for one in example if one["kind"] == "Role" for rule in one["rules"]
    )
    (bound,) = (one for one in example if one["kind"] == "RoleBinding")
    assert bound["subjects"] == binding["subjects"]


def test_every_variable_of_the_pages_exists() -> None:
    """A MESHLIB_ variable that a page names is one that something reads."""
    read = {
        name
        for folder in ("meshlib", "tests", "examples", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"MESHLIB_[A-Z_]+\b", path.read_text())
    }
    from meshlib.runtime.config.sources import variables

    read |= {name for names in variables().values() for name in names}
    named = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in PAGES
        for name in re.findall(r"MESHLIB_[A-Z_]*[A-Z]\b", path.read_text())
    }
    assert sorted(where for where in named if where[1] not in read) == []
