"""The frame of the benches: what every bench module must have, and the page that is written."""

from __future__ import annotations

import importlib
import inspect

import pytest

from tests.bench.__main__ import machine, measure_apart, names, page


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
