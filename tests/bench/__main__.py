"""Runs every ``bench_*.py`` of this folder, prints its table, and writes docs/benchmarks.md and the raw results.

A bench is a module with ``NAME: str``, ``TARGETS: str`` (what was aimed at, in words) and
``run(quick: bool) -> (header, rows)``, both of text, and perhaps a list of pictures (``plots.plot``) as a third. It
compares with a peer in the same run, repeats, and shows the spread; what missed its target says so
(``verdict``). ``quick`` asks for a fraction of the time; its figures are for trying out, and are not written down.

    python -m tests.bench                   all, written down
    python -m tests.bench --quick           all, quickly, only printed
    python -m tests.bench import pick       those whose module is bench_import, bench_pick
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.plots import draw

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent.parent / "docs" / "benchmarks.md"
PICTURES = PAGE.parent / "benchmarks"
#: A bench that hangs must not hang the others; the slowest measures a dead API server for a minute, several times.
TIMEOUT = 1200
_RAW = "MESHLIB_BENCH_RAW"


def names() -> list[str]:
    """The benches there are, without their prefix."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def measure(name: str, quick: bool) -> dict[str, Any]:
    """Run one bench in this process."""
    module = importlib.import_module(f"tests.bench.bench_{name}")
    header, rows, *pictures = module.run(quick)
    return {
        "bench": name,
        "name": module.NAME,
        "targets": module.TARGETS,
        "header": list(header),
        "rows": [[str(cell) for cell in row] for row in rows],
        "plots": [one for some in pictures for one in some],
    }


def measure_apart(name: str, quick: bool) -> dict[str, Any] | None:
    """Run one bench in a process of its own, so that none measures what another left behind; None when it failed."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "tests.bench", "--one", name, *(["--quick"] if quick else [])]
    child = subprocess.Popen(command, pass_fds=(write,), env={**os.environ, _RAW: str(write)})
    os.close(write)
    try:
        child.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        print(f"bench_{name}: not finished after {TIMEOUT} s", file=sys.stderr)
    with os.fdopen(read) as stream:
        text = stream.read()
    return json.loads(text) if child.returncode == 0 and text else None


def machine() -> dict[str, Any]:
    """What the figures were taken on, without naming the machine."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
    }


def show(result: dict[str, Any]) -> None:
    table = Table(title=result["name"], title_justify="left")
    for column in result["header"]:
        table.add_column(column)
    for row in result["rows"]:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False)
    console.print(table)
    console.print(f"target: {result['targets']}\n")


def page(results: Sequence[dict[str, Any]], where: dict[str, Any]) -> str:
    """docs/benchmarks.md."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    parts = [
        "# Benchmarks",
        "",
        "Written by `make bench`; do not edit. Every table compares things measured in the same run on the same "
        "machine: read the ratios, not the absolute figures. Raw results: `tests/bench/results/`.",
        "",
        f"Machine: {where['processors']} processors ({where['architecture']}), {where['system']}, "
        f"{where['implementation']} {where['python']}.",
    ]
    for result in results:
        parts += ["", f"## {result['name']}", "", f"Target: {result['targets']}", ""]
        parts += [line(result["header"]), "|" + "---|" * len(result["header"]), *map(line, result["rows"])]
        for picture in result.get("plots", ()):
            parts += ["", f"![{picture['title']}]({PICTURES.name}/{picture['file']}.svg)"]
    return "\n".join(parts) + "\n"


def stored() -> list[dict[str, Any]]:
    """All results that are written down, in the order of their names."""
    return [
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in names()
        if (RESULTS / f"{name}.json").exists()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "benches", nargs="*", metavar="NAME", help=f"which ones (default: all): {', '.join(names())}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a fraction of the time; nothing is written down"
    )
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        try:
            result = measure(options.one, options.quick)
        except Exception:
            traceback.print_exc()
            return 1
        with os.fdopen(int(os.environ[_RAW]), "w") as stream:
            json.dump(result, stream)
        return 0

    unknown = set(options.benches) - set(names())
    if unknown:
        parser.error(f"no such bench: {', '.join(sorted(unknown))}; there are: {', '.join(names())}")
    where, failed = machine(), []
    for name in options.benches or names():
        result = measure_apart(name, options.quick)
        if result is None:
            failed.append(name)
            continue
        show(result)
        if not options.quick:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{name}.json").write_text(json.dumps({**result, "machine": where}, indent=1) + "\n")
    if not options.quick:
        PAGE.write_text(page(stored(), where))
        print(f"written: docs/{PAGE.name}")
        for result in stored():
            for picture in result.get("plots", ()):
                print(f"written: docs/{PICTURES.name}/{draw(picture, PICTURES).name}")
    for name in failed:
        print(f"bench_{name} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
