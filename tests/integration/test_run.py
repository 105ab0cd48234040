"""meshlib run with real programs: scripts, modules, gunicorn; children; another sitecustomize; another Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.components.backends import Backends
from tests.components.process import free_port

ROOT = Path(__file__).parents[2]
#: Six requests to the alias; prints who answered. The client is made by code that knows nothing of meshlib.
SCRIPT = """
import collections, sys
import httpx
assert "meshlib.clients.httpx.pool" in sys.modules or len(sys.argv) > 1, "not installed"
seen = collections.Counter(httpx.get("http://orders.internal/").text for _ in range(6))
print(sorted(seen.items()))
"""


def environ(backends: list[Any], **more: str) -> dict[str, str]:
    """An alias to static addresses, so that no discovery is needed."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    found |= {
        "PYTHONPATH": str(ROOT),
        "MESHLIB_PICKER": "round_robin",
        "MESHLIB_ADDRESS_ALLOW_LOOPBACK": "1",
    }
    if backends:
        targets = ",".join(backend.address for backend in backends)
        found["MESHLIB_ALIASES"] = json.dumps({"orders.internal": f"static:///{targets}"})
    return found | more


def run(*words: str, env: dict[str, str], code: int = 0, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "meshlib", "run", *words],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize("form", ["python", "script", "module"])
def test_forms(backends: Backends, script: Path, form: str) -> None:
    """`python app.py`, `app.py` and `-m app` are the same program."""
    servers = backends.http(2)
    words = {"python": [sys.executable, str(script)], "script": [str(script)], "module": ["-m", "app"]}[form]
    out = run("--", *words, env=environ(servers), cwd=script.parent)
    assert out.strip() == str([(server.name, 3) for server in servers])


def test_grpc_and_children(backends: Backends, tmp_path: Path) -> None:
    """A child process of the program, started with its environment, is covered too."""
    servers = backends.grpc(2)
    script = tmp_path / "app.py"
    script.write_text(
        "import subprocess, sys\n"
        "if len(sys.argv) == 1: sys.exit(subprocess.call([sys.executable, __file__, 'child']))\n"
        "import grpc\n"
        "call = grpc.insecure_channel('orders.internal:80').unary_unary('/test.Echo/UnaryUnary')\n"
        "print(len({call(b'x', timeout=10) for _ in range(6)}))\n"
    )
    assert run("--", sys.executable, str(script), env=environ(servers)).strip() == "2"


def test_switched_off(backends: Backends, script: Path) -> None:
    """MESHLIB_DISABLED=1: the program is started as it is."""
    script.write_text(
        "import os, sys, httpx\nprint('meshlib' in sys.modules, 'MESHLIB_INSTALL' in os.environ)\n"
    )
    assert run("--", str(script), env=environ([], MESHLIB_DISABLED="1")) == "False False\n"


def test_only_one_library(script: Path) -> None:
    """--only grpc leaves httpx alone."""
    script.write_text("import httpx\nprint('_pool' in vars(httpx.HTTPTransport))\n")
    assert run("--only", "grpc", "--", str(script), env=environ([])) == "False\n"
    assert run("--only", "httpx", "--", str(script), env=environ([])) == "True\n"


def test_nothing_is_imported_that_the_program_does_not_import(script: Path) -> None:
    """A program without httpx and grpc pays for a dictionary and an import hook."""
    script.write_text(
        "import sys\n"
        "heavy = {'httpx', 'httpx2', 'grpc', 'asyncio', 'ssl', 'kubernetes', 'dns', 'socket'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    assert run("--", str(script), env=environ([])) == "[]\n"


def test_another_sitecustomize_runs_as_ever(script: Path, tmp_path: Path) -> None:
    """The one that would have run without us runs, under its own name, and our folder is gone from sys.path."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("marker = 'theirs'\nprint('theirs runs')\n")
    script.write_text(
        "import sys, sitecustomize, httpx\n"
        "print(sitecustomize.marker, '_pool' in vars(httpx.HTTPTransport), any('startup' in p for p in sys.path))\n"
    )
    env = environ([])
    env["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"
    assert run("--", str(script), env=env) == "theirs runs\n" * 2 + "theirs True False\n"  # ours, theirs


def test_signals_exit_codes_and_arguments_are_the_programs(script: Path) -> None:
    """The command becomes the program."""
    script.write_text("import sys\nprint(sys.argv[1:])\nsys.exit(7)\n")
    assert run("--", str(script), "--strict", "-x", env=environ([]), code=7) == "['--strict', '-x']\n"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    run("--", str(script), env=environ([]), code=-9)


def test_programs_that_cannot_start(tmp_path: Path) -> None:
    """The shell's exit codes, one line each."""
    assert "no such program" in run("--", "no-such-program", env=environ([]), code=127)
    (tmp_path / "data").write_text("")
    assert "Permission denied" in run("--", str(tmp_path / "data"), env=environ([]), code=126)
    run(env=environ([]), code=2)


def test_wrong_configuration_is_told_once_before_the_start(script: Path) -> None:
    """Exit 2 instead of a warning in every process."""
    out = run("--", str(script), env=environ([], MESHLIB_STRICT="maybe"), code=2)
    assert "MESHLIB_STRICT" in out
    assert len(out.splitlines()) <= 2


def test_options_reach_the_program(script: Path, tmp_path: Path) -> None:
    """--strict, --config and --kubeconfig become the program's configuration."""
    config, kubeconfig = tmp_path / "mesh.toml", tmp_path / "kube"
    config.write_text('picker = "random"\n')
    script.write_text(
        "import httpx, meshlib.clients.install as home\n"
        "config = home._current.mesh.config\n"
        "print(config.strict, config.picker, dict(config.discovery['k8s']))\n"
    )
    env = environ([], MESHLIB_PICKER="", MESHLIB_DISCOVERY='{"k8s": {"in_cluster": false}}')
    words = ["--strict", "--config", str(config), "--kubeconfig", str(kubeconfig), "--context", "shop"]
    expected = {
        "allow_kubeconfig": False,
        "in_cluster": False,
        "kubeconfig": str(kubeconfig),
        "context": "shop",
    }
    assert run(*words, "--", str(script), env=env).strip() == f"True random {expected}"
    assert "needs --kubeconfig" in run("--context", "shop", "--", str(script), env=env, code=2)


def test_a_python_without_meshlib_says_so_once(script: Path, tmp_path: Path) -> None:
    """The program runs as it would without us; children are silent."""
    script.write_text(
        "import subprocess, sys\n"
        "if len(sys.argv) == 1: print(subprocess.call([sys.executable, '-S', '-c', 'pass']))\n"
    )
    env = environ([])
    starter = "import sys; sys.path.insert(0, sys.argv.pop(1)); from meshlib.cli import main; main()"
    del env["PYTHONPATH"]
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", starter, str(ROOT), "run", "--", str(bare / "bin" / "python"), str(script)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "0\n"
    assert done.stderr.count("cannot import meshlib") == 1


def test_code_wins_over_the_command(backends: Backends, script: Path) -> None:
    """A program that calls install() itself gets what it asks for, and may uninstall."""
    servers = backends.http(2)
    script.write_text(
        "import httpx, meshlib\n"
        "meshlib.install()\n"
        "meshlib.install(grpc=False)\n"
        "print(httpx.get('http://orders.internal/').status_code)\n"
        "meshlib.uninstall()\n"
        "print('_pool' in vars(httpx.HTTPTransport))\n"
    )
    assert run("--", str(script), env=environ(servers)) == "200\nFalse\n"


@pytest.mark.parametrize("preload", [False, True])
def test_gunicorn(backends: Backends, tmp_path: Path, preload: bool) -> None:
    """Prefork workers, with and without --preload, balance without a line of code."""
    servers = backends.http(2)
    (tmp_path / "shop_app.py").write_text(
        "import httpx\n"
        "client = httpx.Client()\n"
        "def app(environ, start):\n"
        "    start('200 OK', [])\n"
        "    return [client.get('http://orders.internal/').content]\n"
    )
    port = free_port("127.0.0.1")
    options = ["-w", "2", "-b", f"127.0.0.1:{port}", *(["--preload"] if preload else [])]
    words = ["-m", "gunicorn", *options, "shop_app:app"]
    process = subprocess.Popen(
        [sys.executable, "-m", "meshlib", "run", "--", *words],
        env=environ(servers),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert _answers(process, port) == {server.name for server in servers}
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("outer", ["tracing", "mesh"])
def test_with_opentelemetry_instrument(backends: Backends, script: Path, tmp_path: Path, outer: str) -> None:
    """Both commands, either one outside: the program is balanced and traced, by its logical name."""
    servers = backends.http(2)
    tool = [str(Path(sys.executable).with_name("opentelemetry-instrument"))]
    tool += ["--traces_exporter", "console", "--metrics_exporter", "none", "--logs_exporter", "none"]
    env = environ(servers)
    mesh = [sys.executable, "-m", "meshlib", "run", "--"]
    if outer == "mesh":
        _declare_entry_point(tmp_path, env)
    order = [*tool, *mesh] if outer == "tracing" else [*mesh, *tool]
    done = subprocess.run(
        [*order, sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert str([(server.name, 3) for server in servers]) in done.stdout
    assert done.stdout.count('"http.url": "http://orders.internal/"') == 6


def _declare_entry_point(folder: Path, env: dict[str, str]) -> None:
    """What installing this source tree would declare, in case the environment has an older one installed."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    target = project["entry-points"]["opentelemetry_pre_instrument"]["meshlib"]
    info = folder / "meshlib_test-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: meshlib-test\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[opentelemetry_pre_instrument]\nmeshlib = {target}\n")
    env["PYTHONPATH"] = f"{folder}{os.pathsep}{env['PYTHONPATH']}"


def test_spawned_children(backends: Backends, script: Path) -> None:
    """multiprocessing's spawn and forkserver start interpreters of their own."""
    servers = backends.http(2)
    script.write_text(
        "import multiprocessing, sys\n"
        "def work(_):\n"
        "    import httpx\n"
        "    return httpx.get('http://orders.internal/').text\n"
        "if __name__ == '__main__':\n"
        "    for method in ('spawn', 'forkserver', 'fork'):\n"
        "        with multiprocessing.get_context(method).Pool(1) as pool:\n"
        "            print(method, len(set(pool.map(work, range(4)))))\n"
    )
    assert run("--", str(script), env=environ(servers)) == "spawn 2\nforkserver 2\nfork 2\n"


def test_uvicorn_workers(backends: Backends, tmp_path: Path) -> None:
    """Workers that are spawned, with an asyncio client made at import."""
    servers = backends.http(2)
    (tmp_path / "shop_asgi.py").write_text(
        "import httpx\n"
        "client = httpx.AsyncClient()\n"
        "async def app(scope, receive, send):\n"
        "    if scope['type'] != 'http':\n"
        "        return\n"
        "    reply = await client.get('http://orders.internal/')\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': reply.content})\n"
    )
    port = free_port("127.0.0.1")
    words = ["-m", "uvicorn", "--workers", "2", "--lifespan", "off", "--port", str(port), "shop_asgi:app"]
    process = subprocess.Popen(
        [sys.executable, "-m", "meshlib", "run", "--", *words],
        env=environ(servers),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert _answers(process, port) == {server.name for server in servers}
    finally:
        process.terminate()
        process.wait(20)


def _answers(process: subprocess.Popen[bytes], port: int) -> set[str]:
    """Who answers eight requests, once the program listens."""
    import httpx

    end = time.monotonic() + 30
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        while True:
            try:
                return {client.get("/").text for _ in range(8)}
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
