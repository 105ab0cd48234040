"""The frame of the benches: what every bench module must have, and the page that is written."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from tests.bench.__main__ import machine, measure_apart, names, page
from tests.bench.plots import draw, plot
from tests.bench.verdict import at_least, both, less_than


@pytest.mark.parametrize("name", names())
def test_every_bench_keeps_the_contract(name: str) -> None:
    """NAME, TARGETS and run(quick) are there; nothing is measured when the module is imported."""
    module = importlib.import_module(f"tests.bench.bench_{name}")
    assert isinstance(module.NAME, str)
    assert isinstance(module.TARGETS, str)
    assert list(inspect.signature(module.run).parameters) == ["quick"]


def test_importing_meets_its_target() -> None:
    """In a process of its own, with the figures of the issue: half of httpx, nothing started, nothing loaded."""
    result = measure_apart("import", quick=True)
    assert result is not None
    rows = {row[0]: dict(zip(result["header"], row, strict=True)) for row in result["rows"]}
    ours = rows["import meshlib"]
    assert float(ours["ratio to httpx"]) <= 0.5
    assert (ours["threads"], ours["sockets"], ours["of the heavy ones"]) == ("1", "0", "none")
    assert rows["import httpx"]["of the heavy ones"] == "httpx"


def test_the_page_is_a_table_per_bench() -> None:
    """Bars inside cells do not break the table, and the machine is described without its name."""
    result = {"name": "A", "targets": "t", "header": ["x", "y"], "rows": [["1|2", "3\n4"]]}
    text = page([result], machine())
    assert "| 1\\|2 | 3 4 |" in text
    assert "## A" in text
    assert set(machine()) == {"python", "implementation", "system", "architecture", "processors"}


POINTS = {
    "meshlib": [(1, 10.0, 9.0, 11.0), (8, 90.00049, 80.0, 95.0)],
    "somebody": [(1, 5.0, 5.0, 5.0), (8, 6, 6, 6)],
}


def test_the_page_shows_the_pictures_of_a_bench() -> None:
    """Below its table, with their titles as the text for those who cannot see them."""
    picture = plot("a-b", "A by B", "b", "a", POINTS)
    result = {"name": "A", "targets": "t", "header": ["x"], "rows": [["1"]], "plots": [picture]}
    assert page([result], machine()).endswith("| 1 |\n\n![A by B](benchmarks/a-b.svg)\n")
    assert picture["lines"]["meshlib"][1] == [8, 90.0, 80.0, 95.0]


def test_a_picture_is_the_same_every_time(tmp_path: Path) -> None:
    """No date and no random names: a run that changed nothing changes no file."""
    pytest.importorskip(
        "matplotlib", reason="only `make bench` draws; it installs the dependency group bench"
    )
    picture = plot("a-b", "A by B", "b", "a", POINTS)
    first = draw(picture, tmp_path).read_bytes()
    assert draw(picture, tmp_path).read_bytes() == first
    assert first.startswith(b"<?xml")
    other = plot(
        "a-b", "A by B", "b", "a", {**POINTS, "meshlib": [(1, 11.0, 9.0, 11.0), (8, 91.0, 80.0, 95.0)]}
    )
    assert draw(other, tmp_path).read_bytes() != first


def test_a_missed_target_is_marked_as_missed() -> None:
    """In words that can be searched for; the bound itself counts as met for "at least", not for "lower"."""
    assert at_least(1.5, 1.5) == "≥ 1.5: met"
    assert at_least(0.449, 0.45) == "≥ 0.45: MISSED"
    assert less_than(0.99, 1.0, "lower p99") == "lower p99: met"
    assert less_than(1.0, 1.0, "lower p99") == "lower p99: MISSED"
    assert both(["≥ 1.5: met", "", "lower p99: MISSED"]) == "≥ 1.5: met; lower p99: MISSED"
