"""docs/node-agent.md against the code: settings, commands, examples."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from meshlib.agent.load import load_settings
from meshlib.agent.settings import AgentSettings, agent_settings
from meshlib.cli.agent.group import _COMMANDS
from meshlib.cli.app import meshlib

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "node-agent.md").read_text()


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("agent_settings", ROOT / "scripts" / "agent_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings_are_the_code_s() -> None:
    """The tables are what the script prints, every setting is there, and each says what it means."""
    module = generator()
    table = module.table(module.SOURCE.read_text())
    assert PAGE.endswith(table)
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert [row[0].strip("| `") for row in rows] == list(AgentSettings.__dataclass_fields__)
    assert all(len(row[2].strip(" |")) > 5 for row in rows)


def test_toml_of_the_page_is_valid() -> None:
    """What a reader copies loads."""
    for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL):
        agent_settings(tomllib.loads(block))


def test_every_command_is_documented_and_explains_itself() -> None:
    """The table has them all; each --help works; every `--set` that the page shows is a setting."""
    table = set(re.findall(r"^\| `agent (\w+)", PAGE, re.MULTILINE)) | {"resume"}
    assert table == set(_COMMANDS)
    for name in _COMMANDS:
        done = CliRunner().invoke(meshlib, ["agent", name, "--help"])
        assert (done.exit_code, name) == (0, name)
    for command in re.findall(r"^meshlib agent .*(?:\\\n.*)*", PAGE, re.MULTILINE):
        flags = re.findall(r"--set (\S+)", command)
        if not any(flag.startswith("beside") for flag in flags):
            load_settings(flags)
    for path in re.findall(r"\]\(\.\./(examples/[^)]+)\)", PAGE):
        assert (ROOT / path).exists()
