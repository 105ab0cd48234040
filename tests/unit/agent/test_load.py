"""Where the agent's settings come from, and what is said when they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshlib.agent.load import describe, load_settings
from meshlib.errors import ConfigError


def test_precedence(tmp_path: Path) -> None:
    """Flags beat the environment, which beats the file; each value says where it is from."""
    file = tmp_path / "agent.toml"
    file.write_text(
        'mode = "nftables"\nscheduler = "wrr"\nsync_period = 20\nexternal_ip_cidrs = ["192.0.2.0/24"]\n'
    )
    environ = {"MESHLIB_AGENT_SCHEDULER": "sh", "MESHLIB_AGENT_FAMILIES": "4", "NODE_NAME": "node-7"}
    loaded = load_settings(["scheduler=mh", "masquerade-all=true"], environ, file)
    settings = loaded.settings
    assert (settings.mode, settings.scheduler, settings.sync_period) == ("nftables", "mh", 20.0)
    assert (settings.families, settings.node_name, settings.masquerade_all) == ((4,), "node-7", True)
    assert settings.external_ip_cidrs == ("192.0.2.0/24",)
    places = {key: place for key, _, place in describe(loaded)}
    assert places["scheduler"] == "--set scheduler"
    assert places["families"] == "MESHLIB_AGENT_FAMILIES"
    assert places["mode"] == f"{file}: mode"
    assert places["drain_seconds"] == "default"


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        (["shceduler=rr"], {}, "did you mean scheduler?"),
        (["scheduler"], {}, "not of the form key=value"),
        (["scheduler=twos"], {}, "--set scheduler: 'twos' is unknown (one of rr"),
        (
            [],
            {"MESHLIB_AGENT_MASQUERADE_BIT": "40"},
            "MESHLIB_AGENT_MASQUERADE_BIT: 40 is not within 0 to 31",
        ),
        ([], {"MESHLIB_AGENT_ADOPT": "maybe"}, "MESHLIB_AGENT_ADOPT: needs true or false"),
        (["families=4,six"], {}, "--set families: needs a number, not 'six'"),
        (["mode=userspace"], {}, "userspace mode needs them"),
    ],
)
def test_wrong_settings_are_named(flags: list[str], environ: dict[str, str], words: str) -> None:
    """The message says in which place, which key, and what to write."""
    with pytest.raises(ConfigError) as caught:
        load_settings(flags, environ)
    assert words in str(caught.value)


def test_wrong_files(tmp_path: Path) -> None:
    """A file that was named must be there and be TOML."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_settings(file=tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("mode = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings(file=tmp_path / "bad.toml")
    (tmp_path / "odd.toml").write_text("mode = 3")
    with pytest.raises(ConfigError, match="mode: 3 is unknown"):
        load_settings(file=tmp_path / "odd.toml")
