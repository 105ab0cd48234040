"""Packages with entry points, as plugin authors ship them: found, listed, used, and tested by their own tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "plugins" / "meshlib-example-picker"
PAGE = (ROOT / "docs" / "extending.md").read_text()


def run(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A Python in which the packages of ``folder`` are installed."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environ},
    )


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's wheel, built and unpacked, which is what installing a pure one does."""
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("site")
    wheel = next(WheelBuilder(str(EXAMPLE)).build(directory=str(folder / "dist"), versions=["standard"]))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.xdist_group("plugin")
def test_the_example_picker_passes_its_own_tests(example: Path) -> None:
    """Its tests run on the built package: the contract of pickers, the entry point, its settings."""
    done = run(example, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.xdist_group("plugin")
def test_an_installed_picker_is_listed_and_used(example: Path) -> None:
    """doctor names it with its package; a setting of the configuration is enough to use it; a wrong one is told."""
    found = json.loads(run(example, "-m", "meshlib", "doctor", "-o", "json").stdout)["findings"]
    assert "meshlib.pickers: shuffled (meshlib-example-picker 0.1.0)" in [one["what"] for one in found]
    program = (
        "import meshlib\n"
        "with meshlib.Mesh() as mesh:\n"
        "    target, hosts = mesh.target('static:///10.0.0.1:80,10.0.0.2:80,10.0.0.3:80'), []\n"
        "    for _ in range(6):\n"
        "        with target.pick(timeout=20) as endpoint:\n"
        "            hosts.append(endpoint.address)\n"
        "print(sorted(hosts[:3]) == sorted(hosts[3:]) == ['10.0.0.1', '10.0.0.2', '10.0.0.3'])\n"
    )
    done = run(example, "-c", program, MESHLIB_PICKER="shuffled", MESHLIB_PICKER_SETTINGS='{"rounds": 2}')
    assert done.stdout == "True\n", done.stderr
    done = run(
        example,
        *("-m", "meshlib", "resolve", "static:///10.0.0.1:80"),
        MESHLIB_PICKER="shuffled",
        MESHLIB_PICKER_SETTINGS='{"rounds": 0}',
    )
    assert done.returncode == 2
    assert "rounds" in done.stderr


def package(folder: Path, files: Mapping[str, str], entry_points: str) -> None:
    """Installs ``my_package`` into ``folder``; ``entry_points`` as pyproject.toml has them."""
    (folder / "my_package").mkdir()
    for name, text in {"__init__.py": "", **files}.items():
        (folder / "my_package" / name).write_text(text)
    described = folder / "my_package-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    groups = re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", entry_points).replace('"', "")
    (described / "entry_points.txt").write_text(groups)


@pytest.fixture
def registry() -> Iterator[str]:
    """The URL of what the page's resolver asks; /services/gone is not there, /services/bad has no usable entry."""
    lists = {"/services/orders": ["10.0.0.1:8080", "169.254.169.254:80", 7], "/services/bad": ["127.0.0.1:1"]}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(lists.get(self.path, [])).encode()
            self.send_response(200 if self.path in lists else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """No access log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/services"
        server.shutdown()
        thread.join()


def test_the_resolver_and_the_picker_of_the_page_as_a_package(tmp_path: Path, registry: str) -> None:
    """docs/extending.md alone is enough: its code and its entry points, and the command line knows the new scheme."""
    picker, resolver, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    points = "\n".join(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
    package(tmp_path, {"first.py": picker, "registry.py": resolver}, points)
    environ = {
        "MESHLIB_DISCOVERY": json.dumps({"registry": {"url": registry}}),
        "MESHLIB_PICKER": "first",
    }

    def resolve(name: str) -> tuple[dict[str, object], int]:
        done = run(
            tmp_path,
            "-m",
            "meshlib",
            "resolve",
            f"registry:///{name}",
            "-o",
            "json",
            "--timeout",
            "20",
            **environ,
        )
        assert done.stdout, done.stderr
        return json.loads(done.stdout), done.returncode

    found, code = resolve("orders")
    assert code == 0
    assert [(row["address"], row["port"]) for row in found["endpoints"]] == [("10.0.0.1", 8080)]  # type: ignore[attr-defined]
    assert found["skipped"] == 2
    found, code = resolve("gone")
    assert code == 1
    assert "knows no /gone" in str(found["error"])
    found, code = resolve("bad")
    assert code == 3
    assert "none of 1 entries" in str(found["error"])
    listed = run(tmp_path, "-m", "meshlib", "doctor", **environ).stdout
    assert "meshlib.resolvers: registry (my-package 1.0)" in listed
    assert "meshlib.pickers: first (my-package 1.0)" in listed


@pytest.mark.parametrize("broken", ["raise RuntimeError('no')", "import no_such_module", "BUILDER = None"])
def test_a_broken_plugin_makes_its_own_name_unusable_and_no_more(tmp_path: Path, broken: str) -> None:
    """An error that names the plugin; doctor still lists it, and everything else works."""
    points = '[project.entry-points."meshlib.pickers"]\nfirst = "my_package.first:BUILDER"\n'
    package(tmp_path, {"first.py": broken}, points)
    target = ("-m", "meshlib", "resolve", "static:///10.0.0.1:80")
    assert run(tmp_path, *target).returncode == 0
    done = run(tmp_path, *target, MESHLIB_PICKER="first")
    assert done.returncode == 2, done.stderr
    assert "first" in done.stderr
    assert "Traceback" not in done.stderr
    assert "first (my-package 1.0)" in run(tmp_path, "-m", "meshlib", "doctor").stdout
