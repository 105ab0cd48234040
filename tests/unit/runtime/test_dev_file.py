"""meshlib.dev.toml: when it is read, what it replaces, and what it says."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meshlib.cli.app import meshlib
from meshlib.errors import ConfigError
from meshlib.model.target import Target, TargetDefaults
from meshlib.runtime import dev_file
from meshlib.runtime.config import load_config
from meshlib.runtime.dev_file import Found, find_dev_file, tell
from meshlib.runtime.mesh import Mesh

IN_A_POD = Path(dev_file.SERVICE_ACCOUNT_DIR, "token").exists()
DEFAULTS = TargetDefaults(namespace="shop")
FILE = """
[replace]
"orders.shop.svc" = 9000
"orders.shop.svc:50051" = ["127.0.0.1:9001", "[::1]:9002", 9003]
"k8s:///stock:http" = "localhost:9004"
"payments.example.com:8443" = "dns:///payments:9000"
"dns:///old.example:80" = 9005
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dev_file, "_said", set())
    monkeypatch.setattr(
        dev_file, "SERVICE_ACCOUNT_DIR", str(tmp_path / "account")
    )  # the tests may run in a pod
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return tmp_path


def find(environ: dict[str, str], folder: Path) -> Found:
    return find_dev_file(environ, DEFAULTS, service_account_dir=folder / "account")


def replaced(found: Found, text: str) -> str:
    assert found.file is not None
    return str(found.file.target(Target.parse(text, DEFAULTS)))


def test_only_when_asked(folder: Path) -> None:
    """By MESHLIB_ENV=dev, beside meshlib.toml, or by its name; by no other word, and never of itself."""
    (folder / "meshlib.dev.toml").write_text(FILE)
    for environ in ({}, {"MESHLIB_ENV": "prod"}, {"MESHLIB_ENV": "development"}, {"MESHLIB_DEV_FILE": ""}):
        assert find(environ, folder) == Found()
    assert find({"MESHLIB_ENV": "dev"}, folder).file is not None
    other = folder / "other"
    other.mkdir()
    found = find({"MESHLIB_ENV": "Dev", "MESHLIB_CONFIG": str(other / "meshlib.toml")}, folder)
    assert found.file is None
    assert f"there is no {other}/meshlib.dev.toml" in found.ignored
    (other / "my.toml").write_text(FILE)
    found = find({"MESHLIB_DEV_FILE": str(other / "my.toml")}, folder)
    assert found.file is not None
    assert found.file.path == str(other / "my.toml")


def test_never_in_a_pod(folder: Path) -> None:
    """Neither with the API server's variables nor with a service account's token, also when it is named."""
    (folder / "meshlib.dev.toml").write_text(FILE)
    asked = {"MESHLIB_ENV": "dev"}
    assert (
        "MESHLIB_ENV=dev is set in a pod"
        in find({**asked, "KUBERNETES_SERVICE_HOST": "10.96.0.1"}, folder).ignored
    )
    (folder / "account").mkdir()
    (folder / "account" / "token").write_text("x")
    found = find({"MESHLIB_DEV_FILE": "meshlib.dev.toml"}, folder)
    assert (found.file, "MESHLIB_DEV_FILE is set in a pod" in found.ignored) == (None, True)


def test_what_it_replaces(folder: Path) -> None:
    """A port of a Service before all of its ports, by any spelling; other hosts as aliases; no others."""
    (folder / "meshlib.dev.toml").write_text(FILE)
    found = find({"MESHLIB_ENV": "dev"}, folder)
    for text in ("orders.shop.svc:80", "k8s:///orders.shop:http", "orders.shop.svc.cluster.local:8080"):
        assert replaced(found, text) == "static:///127.0.0.1:9000"
    assert replaced(found, "k8s:///orders:50051") == "static:///127.0.0.1:9001,[::1]:9002,127.0.0.1:9003"
    assert replaced(found, "k8s:///stock.shop:http") == "static:///127.0.0.1:9004"
    assert replaced(found, "dns:///old.example:80") == "static:///127.0.0.1:9005"
    for text in ("k8s:///stock.shop:grpc", "k8s:///orders.web:http", "dns:///old.example:81"):
        assert replaced(found, text) == str(Target.parse(text, DEFAULTS))
    assert found.file is not None
    assert {host: str(target) for host, target in found.file.aliases.items()} == {
        "payments.example.com:8443": "dns:///payments:9000"
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[replace]\norders = 0", 'replace."orders": .*no IP:PORT'),
        ("[replace]\norders = true", "is no endpoint"),
        ('[replace]\norders = "example.com:80"', "no IP:PORT"),
        ('[replace]\norders = "::1:80"', "no IP:PORT"),
        ('[replace]\norders = "k8s://x"', 'replace."orders"'),
        ("[replace]\norders = []", 'replace."orders"'),
        ('[replace]\n"k8s:///Orders:80" = 9000', "Orders"),
        ('[replace]\n"http://orders/" = 9000', "this is a URL"),
        ('[replace]\n"orders:x" = 9000', "neither a target nor HOST"),
        ("strict = true", "only the table .replace. has a place here"),
        ("replace = 1", "needs a table"),
        ("[replace", "not valid TOML"),
    ],
)
def test_mistakes_are_told_with_their_place(folder: Path, text: str, told: str) -> None:
    """File, entry, what is wrong and what to write."""
    (folder / "meshlib.dev.toml").write_text(text)
    with pytest.raises(ConfigError, match=f"meshlib.dev.toml.*{told}"):
        find({"MESHLIB_ENV": "dev"}, folder)


def test_a_named_file_must_be_there(folder: Path) -> None:
    """Else the program would talk to something else than its developer believes."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        find({"MESHLIB_DEV_FILE": "nowhere.toml"}, folder)


def test_a_file_that_others_may_write_is_ignored(folder: Path) -> None:
    """As ./meshlib.toml is; by its name it may be used."""
    path = folder / "meshlib.dev.toml"
    path.write_text(FILE)
    path.chmod(0o666)
    assert "others may write it" in find({"MESHLIB_ENV": "dev"}, folder).ignored
    assert find({"MESHLIB_DEV_FILE": str(path)}, folder).file is not None


def test_it_is_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the log of a program that has one: what is in use and what it replaces; and that it was ignored."""
    (folder / "meshlib.dev.toml").write_text(FILE)
    for _ in range(2):
        tell(find({"MESHLIB_ENV": "dev"}, folder))
    tell(find({"MESHLIB_ENV": "dev", "KUBERNETES_SERVICE_HOST": "10.96.0.1"}, folder))
    tell(Found())
    used, ignored = [record for record in caplog.records if record.name == "meshlib.dev"]
    assert (used.levelno, ignored.levelno) == (logging.WARNING, logging.WARNING)
    assert "meshlib.dev.toml is in use: orders.shop.svc -> static:///127.0.0.1:9000" in used.getMessage()
    assert "ignored here" in ignored.getMessage()


@pytest.mark.skipif(IN_A_POD, reason="the tests run in a pod, where no dev file is read")
def test_it_is_said_without_a_log_too(folder: Path) -> None:
    """A program that set up no logging says it on stderr, once for all of its Meshes."""
    (folder / "meshlib.dev.toml").write_text("[replace]\norders = 9000")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "from meshlib import Mesh; Mesh(); Mesh()"],
        env={**os.environ, "MESHLIB_ENV": "dev"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == "meshlib: meshlib.dev.toml is in use: orders -> static:///127.0.0.1:9000\n"


def test_a_mesh_uses_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Explicit targets and hosts of URLs lead to the program on this machine, under the names that were typed."""
    (folder / "meshlib.dev.toml").write_text('[replace]\n"orders.shop.svc" = 9000\n"orders" = 9001\n')
    monkeypatch.setenv("MESHLIB_ENV", "dev")
    monkeypatch.delenv("MESHLIB_REQUIRE", raising=False)  # the tests' own; no key of meshlib's
    config = load_config({"sync_timeout": 60})
    assert config.warnings == ()
    with Mesh(config=config) as mesh:
        explicit = mesh.target("k8s:///orders.shop:http")
        assert explicit.authority == "orders.shop.svc"
        for handle, port in ((explicit, 9000), (mesh.for_url("http", "orders", None), 9001)):
            found: Any = handle
            with found.pick(timeout=120.0) as endpoint:
                assert (endpoint.address, endpoint.port) == ("127.0.0.1", port)
    monkeypatch.delenv("MESHLIB_ENV")
    with Mesh(config=config) as mesh:
        assert mesh.stand_ins is None


def test_check_url_shows_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`meshlib check-url` says where a URL leads on this laptop, for a Service and for another host."""
    (folder / "meshlib.dev.toml").write_text(
        '[replace]\n"orders.shop.svc" = 9000\n"pay.example.com" = 9001\n'
    )
    for host, shown in (
        ("orders.shop.svc", "here: static:///127.0.0.1:9000"),
        ("pay.example.com", "127.0.0.1:9001"),
    ):
        monkeypatch.setenv("MESHLIB_ENV", "dev")
        assert shown in CliRunner().invoke(meshlib, ["check-url", f"http://{host}/"]).output
        monkeypatch.delenv("MESHLIB_ENV")
        assert shown not in CliRunner().invoke(meshlib, ["check-url", f"http://{host}/"]).output
