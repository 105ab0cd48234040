"""The blocks of the documentation's pages: code, commands and settings, each with its place.

A block that cannot be run says why in the source, in a comment right above it: ``<!-- not run: the reason -->``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        *(ROOT / "plugins").rglob("*.md"),
    ]
)
#: Fences of these hold commands; in ``console`` only lines that begin with ``$`` do, the others are output.
SHELL = ("", "sh", "console")
_FENCE = re.compile(r"\s*```(\{[\w-]+\}|[\w-]*)(?:\s.*)?")
_NOT_RUN = re.compile(r"\s*<!-- not run: (.+?) -->\s*")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


class Block(NamedTuple):
    """``language`` is "" for a bare fence; ``not_run`` is the reason of its marker, "" without one."""

    page: str
    line: int
    language: str
    text: str
    not_run: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


class Command(NamedTuple):
    """One program with its arguments; ``environ``: what is assigned before it, or by ``export``."""

    place: str
    words: tuple[str, ...]
    environ: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a page; those that only Sphinx reads (``{toctree}``) are left out."""
    page = path.relative_to(ROOT).as_posix()
    lines = path.read_text().splitlines()
    reason, index = "", 0
    while index < len(lines):
        line = lines[index]
        index += 1
        if marker := _NOT_RUN.fullmatch(line):
            reason = marker[1]
        elif fence := _FENCE.fullmatch(line):
            end = next((number for number in range(index, len(lines)) if lines[number].strip() == "```"), 0)
            if not end:
                raise ValueError(f"{page}:{index}: the block that begins here has no end")
            text = "\n".join(lines[index:end]) + "\n"
            if not fence[1].startswith("{"):
                yield Block(page, index, fence[1], text, reason)
            reason, index = "", end + 1
        elif line.strip():
            reason = ""


def all_blocks() -> list[Block]:
    return [block for path in PAGES for block in blocks(path)]


def commands(block: Block) -> Iterator[Command]:
    """Each program of a block with commands, those behind a pipe too; ``kubectl exec`` gives what it executes."""
    text = re.sub(r"\\\n\s*", "", block.text)
    for line in text.splitlines():
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line[2:]
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = list(lexer)
        part: list[str] = []
        for word in [*words, "|"]:
            if word in ("|", "&&", ";"):
                if part:
                    yield _command(block.place, part)
                part = []
            else:
                part.append(word)


def _command(place: str, words: list[str]) -> Command:
    if words[:2] == ["kubectl", "exec"] and "--" in words:
        words = words[words.index("--") + 1 :]
    environ = []
    while words and (words[0] in ("export", "env") or _ASSIGNMENT.match(words[0])):
        if _ASSIGNMENT.match(words[0]):
            name, _, value = words[0].partition("=")
            environ.append((name, value))
        words = words[1:]
    if words[:3] == ["python", "-m", "meshlib"]:
        words = words[2:]
    return Command(place, tuple(words), tuple(environ))
