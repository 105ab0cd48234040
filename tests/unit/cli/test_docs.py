"""The pages tell the truth: keys, policies, errors and links are compared with the code, and examples run."""

from __future__ import annotations

import inspect
import random
import re
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from meshlib import errors
from meshlib.model.endpoint import Endpoint
from meshlib.pickers.base import PickerContext, PickInfo
from meshlib.pickers.builtin import BUILTIN
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.config import load_config

ROOT = Path(__file__).parents[3]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def cells(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def quoted(text: str) -> list[str]:
    return re.findall("`([^`]+)`", text)


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link is a file that exists, with the heading it names."""
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        name, _, fragment = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert fragment in map(anchor, headings), target


@pytest.mark.parametrize("name", ["configuration.md", "policies.md"])
def test_toml_examples_are_valid(name: str, tmp_path: Path) -> None:
    """Each TOML example loads, and its pickers accept their settings."""
    for number, block in enumerate(code_blocks(page(name), "toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(block)
        config = load_config(environ={}, file=path)
        for table in config.target.values():
            module, _, attribute = BUILTIN[table["picker"]].partition(":")
            getattr(import_module(module), attribute).parse_config(table.get("settings", {}), "")


def test_every_policy_is_documented_with_its_settings() -> None:
    """The table of policies has each built-in picker, and each accepts the settings it is said to have."""
    rows = {name: row for row in cells(page("policies.md")) for name in quoted(row[0]) if name in BUILTIN}
    assert set(rows) == set(BUILTIN)
    values = {
        "slow_start_window": 5.0,
        "min_ring_size": 1024,
        "max_ring_size": 4096,
        "table_size": 65537,
        "hash_balance_factor": 125,
    }
    for name, row in rows.items():
        module, _, attribute = BUILTIN[name].partition(":")
        builder = getattr(import_module(module), attribute)
        builder.parse_config({key: values[key] for key in quoted(row[3])}, "")


def test_every_error_is_documented() -> None:
    """The table of errors has each class of meshlib.errors."""
    listed = {quoted(row[0])[0] for row in cells(page("errors.md")) if row[0].startswith("`")}
    existing = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert existing - listed == {"MeshError"}
    assert listed <= existing


def test_dependencies_are_documented() -> None:
    """The table of dependencies is the list of pyproject.toml."""
    project = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[(.*?)\]", project, re.DOTALL | re.MULTILINE)
    assert block is not None
    needed = set(re.findall(r'"([a-z0-9]+)', block[1]))
    listed = {
        name.strip().lower() for row in cells(page("dependencies.md")) for name in row[0].split(",")
    } - {"package"}
    assert listed == needed


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_python_examples_compile(path: Path) -> None:
    """No example has a syntax error."""
    for block in code_blocks(path.read_text(), "python"):
        compile(block, str(path), "exec", flags=__import__("ast").PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_picker_of_the_page_works() -> None:
    """The example of docs/extending.md does what it says, by the contract of pickers."""
    block = next(
        block for block in code_blocks(page("extending.md"), "python") if "class FirstPicker" in block
    )
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(block, "extending.md", "exec"), names)
    first, second = (Subchannel(Endpoint(address=f"10.0.0.{n}", port=80), threading.Lock()) for n in (1, 2))
    none = Subchannel(Endpoint(address="10.0.0.3", port=80, weight=0), threading.Lock())
    builder = names["BUILDER"]
    picker = builder.build(
        (none, first, second), builder.parse_config({}, ""), PickerContext(random=random.Random(1).random)
    )
    assert picker.pick() is first
    assert picker.pick(PickInfo(exclude={first})) is second
    assert picker.pick(PickInfo(exclude={first, second})) is None
    with pytest.raises(errors.ConfigError):
        builder.parse_config({"x": 1}, "here: ")
