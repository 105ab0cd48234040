"""The pictures of docs/benchmarks.md: drawn from the results that are written down, the same ones every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Ours, the same engine over httpcore, and peers; readable without colours too, by the markers.
STYLES = {
    "meshlib": ("#0b6e4f", "o", "-"),
    "meshlib, wire = httpcore": ("#6baf92", "s", "--"),
    "httpx": ("#c0392b", "^", "-"),
    "aiohttp": ("#34495e", "D", ":"),
}


def plot(
    file: str, title: str, x: str, y: str, lines: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, Any]:
    """What a bench returns for one picture. ``lines``: by name, points of (x, median, lowest, highest)."""
    return {
        "file": file,
        "title": title,
        "x": x,
        "y": y,
        "lines": {
            name: [[round(value, 3) for value in point] for point in points] for name, points in lines.items()
        },
    }


def draw(what: Mapping[str, Any], folder: Path) -> Path:
    """Write one picture, an SVG. Needs matplotlib (dependency group ``bench``)."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullLocator

    # a fixed salt and no date: the same results give the same bytes
    with matplotlib.rc_context({"svg.hashsalt": "meshlib", "font.size": 10, "axes.spines.top": False}):
        figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
        axes.spines["right"].set_visible(False)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for name, points in what["lines"].items():
            colour, marker, line = STYLES.get(name, ("#7f8c8d", "x", "-"))
            x, middle, low, high = zip(*points, strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, middle, line, color=colour, marker=marker, label=name)
        ticks = sorted({point[0] for points in what["lines"].values() for point in points})
        axes.set_xticks(ticks)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_title(what["title"], loc="left", fontsize=11)
        axes.set_xlabel(what["x"])
        axes.set_ylabel(what["y"])
        axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axes.legend(frameon=False)
        folder.mkdir(exist_ok=True)
        path = folder / f"{what['file']}.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return path
