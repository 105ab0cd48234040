"""meshlib cost: the arithmetic, and that every figure in it was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from meshlib.cli.app import meshlib
from meshlib.cli.cost import CLIENTS, Plan, estimate, figures
from tests.bench.bench_cost import rows_of

ROOT = Path(__file__).parents[3]
MEASURED = {
    "watches_per_namespace": 2,
    "threads": 1,
    "descriptors": 6,
    "process_mib": 5.0,
    "endpoint_kib": 2.0,
    "endpoint_bytes_sent": 256,
    "connection_kib": {"httpx": 4.0, "httpx-async": 6.0, "grpc": 30.0, "grpc-aio": 28.0},
}


def test_the_arithmetic() -> None:
    """Per worker, pod and all: watches by namespaces, connections by endpoints, memory by both."""
    lines = estimate(Plan(10, 4, 3, 1024, 2, "httpx"), MEASURED)
    rows = {line.what: (line.worker, line.pod, line.everything) for line in lines}
    assert rows["watches at the API server"] == (6, 24, 240)
    assert rows["watches opened again, per minute"] == pytest.approx((0.8, 3.2, 32))
    assert rows["lists for safety, per minute"] == pytest.approx((0.4, 1.6, 16))
    assert rows["first lists, MiB"] == (0.25, 1.0, 10.0)
    assert rows["one endpoint changes: sent, KiB"] == (25, 100, 1000)
    assert rows["connections to endpoints"] == (2048, 8192, 81920)
    assert rows["connections at each endpoint"] == (2, 8, 80)
    assert rows["descriptors"] == (2054, 8216, 82160)
    assert rows["threads"] == (1, 4, 40)
    assert rows["memory: endpoints known, MiB"] == (7, 28, 280)
    assert rows["memory: connections, MiB"] == (8, 32, 320)


def test_every_figure_is_the_measured_one() -> None:
    """What the command reads is what the last run of the bench wrote down, figure by figure."""
    stored = json.loads((ROOT / "tests/bench/results/cost.json").read_text())
    assert rows_of(figures()) == stored["rows"]
    assert set(figures()["connection_kib"]) == set(CLIENTS)


def test_the_page_shows_what_the_command_prints() -> None:
    """docs/cost.md has the table of its own example, with today's figures."""
    result = CliRunner().invoke(
        meshlib, ["cost", "--pods", "200", "--workers", "4", "--endpoints", "50", "-o", "json"]
    )
    assert result.exit_code == 0
    page = (ROOT / "docs/cost.md").read_text()
    plain = (
        CliRunner().invoke(meshlib, ["cost", "--pods", "200", "--workers", "4", "--endpoints", "50"]).stdout
    )
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in plain.splitlines()[2:]]
    assert len(cells) == len(json.loads(result.stdout)["rows"])
    for row in cells:
        assert f"| {' | '.join(row)} |" in page, row


@pytest.mark.parametrize(
    "words", [["--pods", "0", "--endpoints", "1"], ["--pods", "1"], ["--endpoints", "-1", "--pods", "1"]]
)
def test_wrong_usage(words: list[str]) -> None:
    """Numbers outside of their range, and what is missing."""
    assert CliRunner().invoke(meshlib, ["cost", *words]).exit_code == 2
