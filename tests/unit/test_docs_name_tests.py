"""The tables of the documentation name tests: each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
FILES = {path.name for path in SOURCES} | {path.relative_to(ROOT).as_posix() for path in SOURCES}
FUNCTIONS = {name for text in SOURCES.values() for name in re.findall(r"def (test_\w+)\(", text)}
#: `test_x.py`, `test_x`, and both in one as pytest writes them; a star stands for several.
NAMED = re.compile(r"(?:tests/[\w/]+/)?test_\w+(?:\.py(?:::test_\w+)?|\b)")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [
    (page.relative_to(ROOT).as_posix(), name) for page in PAGES for name in NAMED.findall(page.read_text())
]


@pytest.mark.parametrize("page", sorted({page for page, _ in NAMES}))
def test_every_test_that_a_page_names_exists(page: str) -> None:
    """By file, by function, or as ``file::function``; an example on the page may define its own."""
    own = set(re.findall(r"def (test_\w+)\(", (ROOT / page).read_text()))
    missing = []
    for _, name in (each for each in NAMES if each[0] == page):
        file, _, function = name.partition("::") if ".py" in name else ("", "", name)
        if (file and file not in FILES) or (function and function not in FUNCTIONS | own):
            missing.append(name)
    assert missing == []


def test_every_row_of_what_equals_and_what_differs_names_a_test() -> None:
    """In the pages about transparent use; a row's last cell, or the sentence above its table."""
    assert {page for page, _ in NAMES} >= {
        "docs/transparent.md",
        "docs/clients-httpx.md",
        "docs/clients-grpc.md",
    }
    rows = [line for line in equals_and_differs().splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) > 20
    assert [row for row in rows if row != "| | Test |" and not NAMED.search(row) and "Why" not in row] == []


def equals_and_differs() -> str:
    text = (ROOT / "docs" / "transparent.md").read_text()
    return text.split("## What equals")[1].split("## meshlib run")[0]


def test_every_decision_that_is_named_has_its_rule() -> None:
    """``decision D7`` in code, tests or pages is a rule of docs/decisions/rules.md."""
    rules = set(re.findall(r"^\*\*(D\d+)\. ", (ROOT / "docs/decisions/rules.md").read_text(), re.MULTILINE))
    sources = [*SOURCES.values(), *(path.read_text() for path in (ROOT / "meshlib").rglob("*.py"))]
    named = {
        number
        for text in (*sources, *(page.read_text() for page in PAGES))
        for number in re.findall(r"[Dd]ecisions? (D\d+)", text)
    }
    assert len(named) > 10
    assert named <= rules
