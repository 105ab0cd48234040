"""check-url, and the table "your URL -> what happens" of docs/urls.md: one test per row."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from meshlib.cli.app import meshlib
from meshlib.cli.check_url import explain_url
from meshlib.model.target import TargetDefaults
from meshlib.runtime.config import load_config

PAGE = Path(__file__).parents[3] / "docs" / "urls.md"
POD = TargetDefaults(
    namespace="shop",
    cluster_domain="cluster.local",
    search=("shop.svc.cluster.local", "svc.cluster.local", "cluster.local"),
    ndots=5,
)


def rows() -> list[tuple[str, str, list[str], str]]:
    """The page's table: URL, what happens, targets, why."""
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            found.append((cells[0].strip("`"), cells[1], re.findall("`([^`]+)`", cells[2]), cells[3]))
    return found


def test_the_table_is_found() -> None:
    """The rows below are read from the page; none of them may get lost."""
    assert len(rows()) == 27
    assert {decision for _, decision, _, _ in rows()} == {"balanced", "balanced if known", "untouched"}


@pytest.mark.parametrize(("url", "decision", "targets", "why"), rows(), ids=[row[0] for row in rows()])
def test_row_of_the_page(url: str, decision: str, targets: list[str], why: str) -> None:
    """What the documentation promises for this URL is what happens."""
    config = load_config({"aliases": {"orders.internal": "k8s:///orders.shop:http"}}, {})
    found = explain_url(url, config, POD)
    assert found["decision"] == decision
    assert [target["target"] for target in found["targets"]] == targets
    assert why in found["reason"]


@pytest.mark.parametrize("url", [row[0] for row in rows() if row[1] == "balanced if known"])
def test_short_names_can_be_switched_off(url: str) -> None:
    """With short_names = false those rows are untouched."""
    assert explain_url(url, load_config({"short_names": False}, {}), POD)["decision"] == "untouched"


@pytest.mark.parametrize(
    "url", ["orders.shop.svc", "http://", "", "http://[::1", "http://orders.shop.svc:99999/"]
)
def test_what_is_no_url_is_a_usage_error(url: str) -> None:
    """Exit code 2 and one line, no traceback."""
    result = CliRunner().invoke(meshlib, ["check-url", "--", url])
    assert result.exit_code == 2
    assert "Error" in result.output


def test_json_is_stable() -> None:
    """The keys of the JSON form are part of the interface."""
    result = CliRunner().invoke(meshlib, ["check-url", "http://orders.shop.svc/", "-o", "json"])
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert set(found) == {
        *("url", "decision", "meaning", "kind", "reason", "targets", "namespace", "cluster_domain"),
    }
    assert set(found["targets"][0]) == {
        *("target", "authority", "picker", "picker_source", "instead"),
        *("rollout", "rollout_reason", "rollout_source"),
    }


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("MESHLIB_MODE", "off", "But the roll-out is at: off (mode is off; MESHLIB_MODE)."),
        ("MESHLIB_MODE", "observe", "But the roll-out is at: observe (mode is observe; MESHLIB_MODE)."),
        ("MESHLIB_PERCENT", "5", "But the roll-out is at: on at 5 % (percent is 5; MESHLIB_PERCENT)."),
        (
            "MESHLIB_ALLOW_TARGETS",
            "stock.shop.svc",
            "But the roll-out is at: off (not in the list allow_targets; MESHLIB_ALLOW_TARGETS).",
        ),
    ],
)
def test_the_roll_out_is_said(variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the roll-out holds back is not called balanced without a word."""
    plain = CliRunner().invoke(meshlib, ["check-url", "http://orders.shop.svc/"]).output
    assert "roll-out" not in plain
    monkeypatch.setenv(variable, value)
    assert words in CliRunner().invoke(meshlib, ["check-url", "http://orders.shop.svc/"]).output
    assert "roll-out" not in CliRunner().invoke(meshlib, ["check-url", "http://127.0.0.1/"]).output


def test_the_roll_out_of_one_of_several_targets_is_said() -> None:
    """A short name may be one of several Services, of which one is held back by its own table."""
    config = load_config({"target": {"orders.shop.svc:80": {"mode": "off"}}}, {})
    found = explain_url("http://orders.shop/", config, POD)
    held_back = [target["target"] for target in found["targets"] if target["rollout"] == "off"]
    assert len(held_back) == 1 < len(found["targets"])
    assert f" for {held_back[0]}." in found["meaning"]


def test_untouched_exits_with_1() -> None:
    """Scripts can ask."""
    result = CliRunner().invoke(meshlib, ["check-url", "http://127.0.0.1/"])
    assert result.exit_code == 1
    assert "untouched" in result.output


def test_terminal_escapes_are_shown_not_sent() -> None:
    """A URL from a log may hold anything."""
    result = CliRunner().invoke(meshlib, ["check-url", "http://a\x1b[2Jb.shop.svc/"])
    assert "\x1b" not in result.output
