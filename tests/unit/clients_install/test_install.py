"""install before and after the libraries are imported, versions that are not known, fork. In fresh interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import httpx
import pytest

import meshlib
from meshlib.clients import autostart
from meshlib.clients import install as home
from meshlib.clients.httpx import flavour
from meshlib.clients.httpx.flavour import Flavour, load

ROOT = Path(__file__).parents[3]


def python(code: str, **environ: str) -> str:
    found = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=found | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_install_imports_no_client_library() -> None:
    """What the application does not use is neither imported nor needed; what it imports later is balanced."""
    python(
        "import sys, meshlib\n"
        "meshlib.install()\n"
        "assert not {'httpx', 'httpx2', 'grpc', 'httpcore'} & set(sys.modules)\n"
        "import httpx\n"
        "assert '_pool' in vars(httpx.HTTPTransport)\n"
        "assert not {'httpx2', 'grpc'} & set(sys.modules)\n"
        "import httpx2, grpc, grpc._channel\n"
        "assert '_pool' in vars(httpx2.AsyncHTTPTransport)\n"
        "assert type(grpc._channel.Channel).__name__ == 'Routed'\n"
        "meshlib.uninstall()\n"
        "assert '_pool' not in vars(httpx.HTTPTransport)\n"
        "assert '_pool' not in vars(httpx2.HTTPTransport)\n"
        "assert type(grpc._channel.Channel).__name__ == 'ABCMeta'\n"
    )


def test_uninstall_before_the_import() -> None:
    """Nobody waits any more, and the import machinery is as it was."""
    python(
        "import sys\n"
        "before = list(sys.meta_path)\n"
        "import meshlib\n"
        "meshlib.install()\n"
        "assert sys.meta_path != before\n"
        "meshlib.uninstall()\n"
        "assert sys.meta_path == before\n"
        "import httpx\n"
        "assert '_pool' not in vars(httpx.HTTPTransport)\n"
    )


def test_no_thread_and_no_socket_before_a_request() -> None:
    """Clients and channels may be made; nothing starts."""
    python(
        "import threading, meshlib\n"
        "meshlib.install()\n"
        "import httpx, grpc\n"
        "client = httpx.Client(verify=False)\n"
        "channel = grpc.insecure_channel('k8s:///orders.shop:80')\n"
        "assert [t.name for t in threading.enumerate() if 'meshlib' in t.name] == []\n"
        "client.close(); channel.close()\n"
    )


def test_httpx2_under_the_name_of_httpx() -> None:
    """httpx2.alias_httpx(): one library with two names, balanced once."""
    for before in ("", "import meshlib; meshlib.install()"):
        python(
            f"{before}\n"
            "import httpx2\n"
            "httpx2.alias_httpx()\n"
            "import httpx, meshlib\n"
            "assert httpx is httpx2\n"
            "meshlib.install()\n"
            "assert type(httpx.HTTPTransport._pool).__name__ == 'Seam'\n"
            "transport = httpx.HTTPTransport(verify=False)\n"
            "assert type(transport._pool).__name__ == 'MeshPool'\n"
            "assert type(transport._pool.original).__module__ == 'httpcore2'\n"
            "meshlib.uninstall()\n"
            "assert '_pool' not in vars(httpx.HTTPTransport)\n"
        )


def test_an_unknown_httpx_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decision D18: one warning, clients as ever, the other libraries balanced."""
    known = load("httpx")
    strange = Flavour(known.httpx, known.core, "httpx 9.9 is not a version this meshlib knows")
    monkeypatch.setitem(flavour._loaded, "httpx", strange)
    with pytest.warns(RuntimeWarning, match="httpx 9.9") as caught:
        meshlib.install()
    try:
        assert len(caught) == 1
        assert "_pool" not in vars(httpx.HTTPTransport)
        assert home._current is not None
        assert len(home._current.seams) >= 1
    finally:
        meshlib.uninstall()


def test_whatever_goes_wrong_inside_the_import_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours during another module's import is a warning."""

    def broken(name: str) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(flavour, "load", broken)
    with pytest.warns(RuntimeWarning, match="a fault of ours"):
        meshlib.install()
    meshlib.uninstall()


def test_a_wrong_configuration_is_told_by_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """In code it raises, and nothing is installed; the automatic way only warns."""
    from meshlib.errors import ConfigError

    monkeypatch.setenv("MESHLIB_STRICT", "maybe")
    with pytest.raises(ConfigError, match="MESHLIB_STRICT"):
        meshlib.install()
    assert home._current is None
    with pytest.warns(RuntimeWarning, match="MESHLIB_STRICT"):
        home.install_automatically({"MESHLIB_INSTALL": "httpx"})
    assert "_pool" not in vars(httpx.HTTPTransport)
    meshlib.uninstall()


@pytest.mark.parametrize(
    "text, expected", [("1", True), ("TRUE", True), ("", False), ("0", False), ("no", False)]
)
def test_the_switch(text: str, expected: bool) -> None:
    """MESHLIB_DISABLED as the other yes-or-no variables."""
    assert autostart.disabled({"MESHLIB_DISABLED": text}) is expected
    switched = {"MESHLIB_DISABLED": text, "MESHLIB_INSTALL": "grpc"}
    assert bool(autostart.wanted(switched)) is not expected


def test_automatic_without_the_command_does_nothing() -> None:
    """OpenTelemetry calls it in every program that it starts."""
    home.install_automatically({})
    assert home._current is None


def test_the_entry_point_for_opentelemetry_exists() -> None:
    """As declared in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    target = project["entry-points"]["opentelemetry_pre_instrument"]["meshlib"]
    assert target == f"{home.__name__}:install_automatically"


def test_fork_after_install() -> None:
    """The child balances as well, and may uninstall for itself."""
    out = python(
        "import os, meshlib\n"
        "meshlib.install()\n"
        "import httpx\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    ok = '_pool' in vars(httpx.HTTPTransport)\n"
        "    meshlib.uninstall()\n"
        "    os._exit(0 if ok and '_pool' not in vars(httpx.HTTPTransport) else 1)\n"
        "print(os.waitpid(child, 0)[1], '_pool' in vars(httpx.HTTPTransport))\n"
    )
    assert out == "0 True\n"


def test_known_variables_are_not_warned_about() -> None:
    """They belong to install and run, not to a Mesh."""
    from meshlib.runtime.config import load_config

    names = ("MESHLIB_DISABLED", "MESHLIB_INSTALL", "MESHLIB_RUN_PID")
    assert load_config(environ=dict.fromkeys(names, "0")).warnings == ()


def test_a_pool_that_is_replaced_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who sets transport._pool gets what they set; a strange object is shown as it is."""
    meshlib.install()
    try:
        transport = httpx.HTTPTransport()
        first = transport._pool
        strange: Any = types.SimpleNamespace(close=lambda: None)
        transport._pool = strange
        assert transport._pool is strange
        transport._pool = first.original  # type: ignore[attr-defined]
        assert transport._pool is first
        del transport._pool
        with pytest.raises(AttributeError):
            transport._pool  # noqa: B018
    finally:
        meshlib.uninstall()


def test_the_start_of_a_program_waits_for_its_first_library() -> None:
    """Nothing of ours but the hook is loaded before; uninstall() takes that away too."""
    python(
        "import sys\n"
        "before = list(sys.meta_path)\n"
        "from meshlib.clients import autostart\n"
        "autostart.start()\n"
        "assert 'meshlib.clients.install' not in sys.modules and 'threading' not in sys.modules\n"
        "import httpx2\n"
        "assert '_pool' in vars(httpx2.HTTPTransport)\n"
        "import httpx\n"
        "assert '_pool' in vars(httpx.HTTPTransport)\n"
        "import meshlib\n"
        "meshlib.uninstall()\n"
        "assert sys.meta_path == before\n"
        "import grpc\n"
        "assert 'meshlib.clients.grpc.seam' not in sys.modules\n",
        MESHLIB_INSTALL="httpx,grpc",
    )
    python(
        "import sys\n"
        "before = list(sys.meta_path)\n"
        "from meshlib.clients import autostart\n"
        "autostart.start()\n"
        "import meshlib\n"
        "meshlib.uninstall()\n"
        "assert sys.meta_path == before\n"
        "import httpx\n"
        "assert '_pool' not in vars(httpx.HTTPTransport)\n",
        MESHLIB_INSTALL="httpx,grpc",
    )
