"""The command group: help, versions, laziness."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from meshlib import __version__
from meshlib.cli.app import _COMMANDS, meshlib
from meshlib.cli.exits import stop
from meshlib.errors import DiscoveryError


def test_version() -> None:
    """--version prints the package's version."""
    assert CliRunner().invoke(meshlib, ["--version"]).output == f"meshlib {__version__}\n"


@pytest.mark.parametrize("name", sorted(_COMMANDS))
def test_every_command_has_help_with_examples_and_exit_codes(name: str) -> None:
    """Each command explains itself: examples, and what its exit codes mean."""
    result = CliRunner().invoke(meshlib, [name, "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert f"meshlib {name}" in result.output
    if name != "rbac":
        assert "Exit codes:" in result.output


def test_unknown_command_is_a_usage_error() -> None:
    """Exit code 2, as for every wrong usage."""
    assert CliRunner().invoke(meshlib, ["nonsense"]).exit_code == 2


def test_module_can_be_run() -> None:
    """python -m meshlib is the meshlib command."""
    done = subprocess.run(
        [sys.executable, "-m", "meshlib", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"meshlib {__version__}\n"


def test_help_loads_no_client_library() -> None:
    """The list of commands needs neither httpx nor grpc, kubernetes, dns or rich."""
    program = (
        "import sys, json\n"
        "from meshlib.cli.app import meshlib\n"
        "try:\n    meshlib(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "names = ('httpx', 'grpc', 'kubernetes', 'dns', 'rich')\n"
        "print(json.dumps([n for n in names if n in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr) == []


def test_bad_configuration_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong setting ends a command with exit code 2 and the place, without a traceback."""
    monkeypatch.setenv("MESHLIB_STRICT", "maybe")
    result = CliRunner().invoke(meshlib, ["check-url", "http://orders.shop.svc/"])
    assert result.exit_code == 2
    assert "MESHLIB_STRICT: needs true or false" in result.output


def test_errors_send_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """An error may quote what an API server or a manifest says: a terminal is shown it, and not sent it."""
    with pytest.raises(SystemExit) as caught:
        stop(DiscoveryError("listing: \x1b[2J\x1b[31mall is well\nsecond line"))
    assert caught.value.code == 3
    assert capsys.readouterr().err == "error: listing: \\x1b[2J\\x1b[31mall is well\nsecond line\n"
