"""The page docs/kernel-acceptance.md: the list on one side, tests by their ``acceptance`` markers on the other.

Tests are read, not run: ``@pytest.mark.acceptance(1, 2)`` at a function or a class, ``pytestmark`` of a module, and the
lists ``acceptance:`` of the golden snapshots in tests/vectors/compile.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "kernel-acceptance.md"
LINES = Path(__file__).parent / "lines.toml"
GOLDEN = ROOT / "tests" / "vectors" / "compile"

AREAS = {
    "FLT": "Which objects count",
    "SVC": "Services",
    "EPS": "Slices and endpoints",
    "SEL": "Selection by topology",
    "POL": "Traffic policies",
    "TRM": "Terminating endpoints and draining",
    "VS": "Virtual servers",
    "NAT": "Masquerade",
    "NP": "Node ports",
    "LB": "Load balancers",
    "FW": "Verdicts and source ranges",
    "AFF": "Session affinity",
    "CT": "Connection tracking",
    "HC": "Health",
    "REC": "Reconciliation and ownership",
    "SYN": "Pace",
    "DET": "Choosing a mode",
    "DUAL": "Two families",
    "E2E": "End to end",
    "SHR": "Shared with the client path",
}

_HEAD = """\
# The kernel path's acceptance list

What a node agent has to do, one line each, and the tests that show it. Made by `python -m tests.acceptance` from
the `acceptance` markers of the tests; a test keeps this page current. **Packets**: real packets through a real kernel
show it, in network namespaces or in a guest of their own (see [testing](testing.md)).
"""


class Line(NamedTuple):
    """One line of the list. ``packets``: only a real kernel can show it; ``why``: said instead of a test."""

    number: int
    area: str
    text: str
    packets: bool = False
    why: str = ""


class Shown(NamedTuple):
    """A test, or a golden snapshot. ``path`` is relative to the project."""

    path: str
    name: str

    @property
    def kernel(self) -> bool:
        """Whether it programs a real kernel."""
        return self.path.startswith("tests/kernel/")


def lines() -> list[Line]:
    """The list."""
    return [Line(**each) for each in tomllib.loads(LINES.read_text())["line"]]


def shown() -> dict[int, list[Shown]]:
    """The tests by line."""
    found: dict[int, list[Shown]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text()
        if "mark.acceptance" in text:
            for numbers, name in marked(text):
                for number in numbers:
                    found.setdefault(number, []).append(Shown(str(path.relative_to(ROOT)), name))
    for path in sorted(GOLDEN.glob("*.yaml")):
        for case in yaml.safe_load(path.read_text()):
            for number in case["acceptance"]:
                found.setdefault(number, []).append(Shown(str(path.relative_to(ROOT)), case["name"]))
    return found


def marked(text: str) -> Iterator[tuple[set[int], str]]:
    """The tests of a module with the lines that they name."""
    module = ast.parse(text)
    of_all: set[int] = set()
    for node in module.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets
        ):
            of_all |= _numbers(node.value)
    yield from _tests(module.body, of_all)


def _tests(body: Sequence[ast.stmt], outer: set[int]) -> Iterator[tuple[set[int], str]]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        numbers = outer.union(*(_numbers(each) for each in node.decorator_list))
        if isinstance(node, ast.ClassDef):
            yield from _tests(node.body, numbers)
        elif numbers and node.name.startswith("test_"):
            yield numbers, node.name


def _numbers(node: ast.AST) -> set[int]:
    """Those of the markers within an expression (a parameter's own among them)."""
    found: set[int] = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Call) and ast.unparse(each.func) == "pytest.mark.acceptance":
            found |= {
                arg.value for arg in each.args if isinstance(arg, ast.Constant) and type(arg.value) is int
            }
    return found


def problems(listed: Sequence[Line], by: Mapping[int, Sequence[Shown]]) -> list[str]:
    """What is wrong with the list or the markers; empty when nothing is."""
    known = {line.number for line in listed}
    told = [
        f"{each.path} {each.name} names line {number}" for number in by.keys() - known for each in by[number]
    ]
    for line in listed:
        if bool(by.get(line.number)) == bool(line.why):
            told.append(
                f"line {line.number} has {'both tests and' if line.why else 'neither a test nor'} a reason"
            )
        if line.packets and not line.why and not any(each.kernel for each in by.get(line.number, ())):
            told.append(f"line {line.number} can be shown by a real kernel only, and is not")
        if line.area not in AREAS:
            told.append(f"line {line.number}: no area is called {line.area}")
    return sorted(told)


def page(listed: Sequence[Line], by: Mapping[int, Sequence[Shown]]) -> str:
    """The whole page."""
    parts = [_HEAD]
    for area, title in AREAS.items():
        of_area = [line for line in listed if line.area == area]
        rows = [
            f"| {line.number} | {_cell(line.text)} | {_packets(line, by)} | {_tests_of(line, by)} |"
            for line in of_area
        ]
        parts.append(
            "\n".join([f"## {title}\n", "| | behaviour | packets | shown by |", "|---|---|---|---|", *rows])
            + "\n"
        )
    return "\n".join(parts)


def _packets(line: Line, by: Mapping[int, Sequence[Shown]]) -> str:
    return "yes" if any(each.kernel for each in by.get(line.number, ())) else ""


def _tests_of(line: Line, by: Mapping[int, Sequence[Shown]]) -> str:
    if line.why:
        return f"no test: {_cell(line.why)}"
    by_path: dict[str, list[str]] = {}
    for each in by.get(line.number, ()):
        by_path.setdefault(each.path, []).append(each.name)
    return "<br>".join(
        f"[{Path(path).name}](../{path}): {', '.join(_cell(name) for name in dict.fromkeys(names))}"
        for path, names in by_path.items()
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
