"""What is shipped is what the repository says: files, metadata, dependencies, and an import that costs nothing."""

from __future__ import annotations

import ast
import email.parser
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import meshlib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# import name → distribution, where they differ
DISTRIBUTIONS = {"dns": "dnspython", "grpc": "grpcio", "yaml": "pyyaml"}
# Imported only where an application has installed and imported it itself.
OPTIONAL = {"httpx2", "httpcore2", "h2", "opentelemetry", "prometheus_client", "pytest", "uvicorn"}
# Looked into by way of httpx (meshlib/clients/httpx/flavour.py), never imported in a statement.
BY_NAME = {"httpcore"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    from hatchling.builders.wheel import WheelBuilder

    path = next(
        WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    )
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.mark.xdist_group("wheel")
def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "meshlib/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"meshlib", f"meshlib_sdk-{PROJECT['version']}.dist-info"}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "meshlib").rglob("*.py")}
    assert sources <= names


@pytest.mark.xdist_group("wheel")
def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    [folder] = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = email.parser.Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Name"] == "meshlib-sdk"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()
    assert set(metadata.get_all("Provides-Extra")) == {"http2", "agent", "opentelemetry", "prometheus", "all"}
    assert "meshlib = meshlib.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()


@pytest.mark.xdist_group("wheel")
def test_wheel_works_alone(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked elsewhere, as installing does, it needs nothing of the repository: import, every name, the command."""
    wheel.extractall(tmp_path)
    program = (
        "import meshlib, meshlib.grpc.aio, meshlib.httpx, meshlib.testing.contracts\n"
        "from meshlib import Mesh\n"
        "found = [getattr(meshlib, name) for name in meshlib.__all__]\n"
        "print(meshlib.__file__)\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-W", "error", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", program).strip() == str(tmp_path / "meshlib" / "__init__.py")
    assert "1 of 1 may receive traffic" in run("-m", "meshlib", "resolve", "static:///10.0.0.1:80")


@pytest.mark.xdist_group("wheel")
def test_sdist_holds_what_the_wheel_is_made_of(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """From the source archive the same wheel comes, and its tests and tools are there; caches and results are not."""
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    path = next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, **safe)
    folder = tmp_path / f"meshlib_sdk-{PROJECT['version']}"
    for name in (
        "Makefile",
        ".ci/run",
        "tests/conftest.py",
        "scripts/venv.sh",
        "docs/quickstart.md",
        "LICENSE",
    ):
        assert (folder / name).is_file(), name
    assert [one for one in folder.rglob("*") if one.name in ("__pycache__", ".git", ".venv")] == []
    again = next(WheelBuilder(str(folder)).build(directory=str(tmp_path / "dist"), versions=["standard"]))
    with zipfile.ZipFile(again) as rebuilt:
        assert set(rebuilt.namelist()) == set(wheel.namelist())


def test_one_version() -> None:
    assert meshlib.__version__ == PROJECT["version"]


def imported_modules() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "meshlib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found


def test_every_import_is_declared_and_every_dependency_used() -> None:
    declared = {re.split(r"[<>=\[]", line)[0].strip() for line in PROJECT["dependencies"]}
    foreign = imported_modules() - set(sys.stdlib_module_names) - {"meshlib"} - OPTIONAL | BY_NAME
    assert {DISTRIBUTIONS.get(name, name) for name in foreign} == declared


def test_import_starts_nothing_and_loads_no_library() -> None:
    program = """
import sys, threading
import meshlib
heavy = {"httpx", "httpcore", "grpc", "kubernetes", "dns", "asyncio", "ssl", "socket"} & set(sys.modules)
print(sorted(heavy), threading.active_count())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split("\n")[0] == "[] 1"
