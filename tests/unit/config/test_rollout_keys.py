"""mode, percent, allow_targets: what they say about one target, and how a later reading of the file differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshlib.errors import ConfigError
from meshlib.model.target import Target, TargetDefaults
from meshlib.policies.rollout import Mode, Wish
from meshlib.runtime.config import Config, load_config
from meshlib.runtime.config.load import reload_config
from meshlib.runtime.config.rollout import annotated_mode, changes, wish_for, with_live_keys

POD = TargetDefaults(namespace="shop", search=("shop.svc.cluster.local", "svc.cluster.local"), ndots=5)
ORDERS = "orders.shop.svc:80"


def wish(about: str = ORDERS, /, **code: Any) -> Wish:
    return wish_for(load_config(code, {}), Target.parse(about, POD), POD)


def test_default_is_on() -> None:
    """Nothing said: everything is the mesh's."""
    assert wish() == Wish(Mode.ON, 100.0, True, "default", "default", "default")


def test_a_targets_own_table_wins() -> None:
    """Key by key, under any spelling of the Service port; others keep what holds for all."""
    said = {"mode": "observe", "percent": 50, "target": {"k8s:///orders.shop:80": {"mode": "on"}}}
    found = wish(**said)
    assert (found.mode, found.mode_source) == (Mode.ON, 'code: target."k8s:///orders.shop:80".mode')
    assert (found.percent, found.percent_source) == (50.0, "code: percent")
    assert wish("stock.shop.svc:80", **said).mode is Mode.OBSERVE


@pytest.mark.parametrize(
    "entry, listed",
    [
        ("orders.shop.svc", True),
        ("Orders.shop.svc.cluster.local", True),
        ("orders.shop.svc:80", True),
        ("k8s:///orders.shop:80", True),
        ("orders", True),  # as a URL in this pod means it
        ("orders:80", True),
        ("orders.internal", True),  # an alias
        ("orders.shop.svc:81", False),
        ("orders.internal:9", False),
        ("k8s:///orders.shop:http", False),
        ("orders.stock.svc", False),
        ("0.orders.shop.svc", False),
        ("example.com", False),
        ("dns:///orders.shop.svc:80", False),
    ],
)
def test_the_list_takes_every_spelling(entry: str, listed: bool) -> None:
    """A target, or a host with a port or for all of them."""
    found = wish(allow_targets=[entry, "other.shop.svc"], aliases={"orders.internal:80": ORDERS})
    assert (found.allowed, found.allowed_source) == (listed, "code: allow_targets")


def test_an_empty_list_is_nobody() -> None:
    """Taking the last one out must not let everybody in."""
    assert not wish(allow_targets=[]).allowed


@pytest.mark.parametrize(
    "code, where",
    [
        ({"mode": "maybe"}, "code: mode"),
        ({"percent": 101}, "code: percent"),
        ({"percent": -0.1}, "code: percent"),
        ({"percent": True}, "code: percent"),
        ({"percent": float("nan")}, "code: percent"),
        ({"allow_targets": "orders"}, "code: allow_targets"),
        ({"allow_targets": ["http://orders"]}, "code: allow_targets[0]"),
        ({"allow_targets": ["orders/"]}, "code: allow_targets[0]"),
        ({"target": {ORDERS: {"mode": "ON"}}}, f'code: target."{ORDERS}".mode'),
    ],
)
def test_what_is_wrong_is_named(code: dict[str, Any], where: str) -> None:
    """A ConfigError with the place."""
    with pytest.raises(ConfigError) as caught:
        load_config(code, {})
    assert caught.value.where == where


def test_environment() -> None:
    """As words, a number, and names between commas."""
    said = {"MESHLIB_MODE": "observe", "MESHLIB_PERCENT": "2.5", "MESHLIB_ALLOW_TARGETS": "orders, stock:80"}
    found = load_config({}, said)
    assert (found.mode, found.percent, found.allow_targets) == ("observe", 2.5, ("orders", "stock:80"))
    with pytest.raises(ConfigError, match="MESHLIB_PERCENT: needs a number from 0 to 100"):
        load_config({}, {"MESHLIB_PERCENT": "some"})


@pytest.mark.parametrize(
    "text, local, mode, ignored",
    [
        ("off", "on", Mode.OFF, ""),
        ("observe", "on", Mode.OBSERVE, ""),
        ("observe", "observe", Mode.OBSERVE, ""),
        ("off", "off", Mode.OFF, ""),
        ("observe", "off", None, "'observe' is more than 'off' (code: mode)"),
        ("on", "on", None, ""),  # said where all annotations are checked
        ("OFF", "on", None, ""),
    ],
)
def test_annotation(text: str, local: str, mode: Mode | None, ignored: str) -> None:
    """It lowers, or it is ignored for a reason."""
    found, why = annotated_mode({"meshlib.dev/mode": text}, wish(mode=local))
    assert found is mode
    assert why.startswith(ignored)
    assert bool(why) is bool(ignored)


class TestReading:
    """The file, read again."""

    def loaded(self, path: Path, text: str, **environ: str) -> Config:
        path.write_text(text)
        return load_config({}, environ, path)

    def test_live_keys_are_taken_and_no_other(self, tmp_path: Path) -> None:
        """The Config that is in force changes in mode, percent and the list; a new zone waits for a restart."""
        path = tmp_path / "settings.toml"
        table = f'[target."{ORDERS}"]\npicker = "maglev"\n'
        config = self.loaded(path, f'zone = "a"\npercent = 5\n{table}percent = 7\n')
        path.write_text(f'zone = "b"\nmode = "off"\nallow_targets = []\n{table}mode = "observe"\n')
        read = reload_config(config)
        assert changes(config, read) == (
            (
                "allow_targets: default -> ()",
                "mode: default -> off",
                "percent: 5.0 -> default",
                f'target."{ORDERS}".mode: default -> observe',
                f'target."{ORDERS}".percent: 7.0 -> default',
            ),
            ("zone",),
        )
        found = with_live_keys(config, read)
        assert (found.mode, found.percent, found.allow_targets, found.zone) == ("off", 100.0, (), "a")
        assert dict(found.target[ORDERS]) == {"picker": "maglev", "mode": "observe"}
        assert found.source("mode") == f"{path}: mode"
        assert found.source("percent") == "default"
        assert found.source("zone") == f"{path}: zone"

    def test_what_code_and_environment_say_stays(self, tmp_path: Path) -> None:
        """They win over the file as ever, and what cannot take effect is known."""
        path = tmp_path / "settings.toml"
        config = self.loaded(path, "", MESHLIB_MODE="observe")
        path.write_text('mode = "off"\n')
        read = reload_config(config)
        assert (read.mode, read.shadowed) == ("observe", ("mode (MESHLIB_MODE wins)",))
        assert changes(config, read) == ((), ())

    def test_a_file_that_cannot_be_used_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not valid, gone although it was named, or suddenly everybody's."""
        path = tmp_path / "settings.toml"
        config = self.loaded(path, 'mode = "off"\n')
        path.write_text("mode = = 1\n")
        with pytest.raises(ConfigError, match="not valid TOML"):
            reload_config(config)
        path.unlink()
        with pytest.raises(ConfigError, match="cannot be read"):
            reload_config(config)
        monkeypatch.chdir(tmp_path)
        unnamed = tmp_path / "meshlib.toml"
        unnamed.write_text('mode = "off"\n')
        config = load_config({}, {})
        unnamed.chmod(0o666)
        with pytest.raises(ConfigError, match="others may write it"):
            reload_config(config)

    def test_a_file_that_nobody_named_may_come_and_go(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Found where the program was started, although it works elsewhere now."""
        monkeypatch.chdir(tmp_path)
        config = load_config({}, {})
        (tmp_path / "sub").mkdir()
        monkeypatch.chdir(tmp_path / "sub")
        (tmp_path / "meshlib.toml").write_text('mode = "off"\n')
        assert reload_config(config).mode == "off"
        (tmp_path / "meshlib.toml").unlink()
        assert reload_config(config).mode == "on"

    def test_a_config_made_in_code_has_no_file(self) -> None:
        """There is nothing to read again."""
        with pytest.raises(ValueError, match="not loaded"):
            reload_config(Config())
