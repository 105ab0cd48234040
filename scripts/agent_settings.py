"""Prints the table of the agent's settings for docs/node-agent.md, from the comments in meshlib/agent/settings.py."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "meshlib" / "agent" / "settings.py"


def table(source: str) -> str:
    """One table per section."""
    lines = source.splitlines()
    found: list[str] = []
    for section, key, default, meaning in _entries(lines, _fields(source)):
        if section not in found:
            found += ["", f"### {section}", "", "| Key | Default | Meaning |", "|---|---|---|"]
            found.append(section)
        found.append(f"| `{key}` | `{default}` | {meaning} |")
    sections = {line.removeprefix("### ") for line in found if line.startswith("### ")}
    return "\n".join(line for line in found if line not in sections).strip() + "\n"


def _fields(source: str) -> list[tuple[int, int, str, str]]:
    """First and last line (from 0), name and default of every setting."""
    tree = ast.parse(source)
    (settings,) = (
        each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == "AgentSettings"
    )
    return [
        (each.lineno - 1, (each.end_lineno or each.lineno) - 1, each.target.id, _default(each.value))
        for each in settings.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    ]


def _default(value: ast.expr | None) -> str:
    plain = ast.literal_eval(value) if value is not None else None
    if isinstance(plain, bool):
        return str(plain).lower()
    if isinstance(plain, tuple):
        return "[" + ", ".join(map(repr, plain)) + "]"
    if isinstance(plain, str):
        return f'"{plain}"'
    return f"{plain:g}" if isinstance(plain, float) else str(plain)


def _entries(
    lines: list[str], fields: list[tuple[int, int, str, str]]
) -> Iterator[tuple[str, str, str, str]]:
    section, shared = "", ""
    previous = 0
    for first, last, name, default in fields:
        own: list[str] = []
        group: list[str] = []
        for line in lines[previous or first - 2 : first]:
            text = line.strip()
            if match := re.fullmatch(r"# -- (.*?) -+", text):
                section, shared = match[1], ""
            elif text.startswith("#:"):
                own.append(text[2:].strip())
            elif text.startswith("#"):
                group.append(text[1:].strip())
        if "#:" in lines[last]:
            own.append(lines[last].partition("#:")[2].strip())
        shared = " ".join(group) or shared
        meaning = " ".join(own) or shared
        yield section, name, default, meaning.replace("|", "\\|")
        previous = last + 1


if __name__ == "__main__":
    print(table(SOURCE.read_text()), end="")
