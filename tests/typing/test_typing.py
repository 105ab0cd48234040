"""What a user's type checker says about code that uses the public API.

`accepted/` must pass mypy --strict. In `rejected/`, a line that ends with `# expect: CODE` must be an error with that
code, and no other line may be one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip(
    "mypy", reason="the type checker belongs to the group `check`, which this environment lacks"
)

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def errors_of(folder: Path, cache: Path) -> set[tuple[str, int, str]]:
    """(file, line, code)"""
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        # a configuration of its own: users do not have ours
        "--config-file=",
        f"--cache-dir={cache}",
        "--no-error-summary",
        "--hide-error-context",
        "--follow-imports=silent",
        *(str(path) for path in sorted(folder.glob("*.py"))),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=110)
    assert done.returncode in (0, 1), done.stderr
    found = re.findall(r"^(.+?):(\d+): error: .*?\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    assert len(found) == done.stdout.count(": error: "), done.stdout
    return {(Path(name).name, int(line), code) for name, line, code in found}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.xdist_group("typing")
def test_accepted(cache: Path) -> None:
    assert errors_of(HERE / "accepted", cache) == set()


@pytest.mark.xdist_group("typing")
def test_rejected(cache: Path) -> None:
    expected = set()
    for path in (HERE / "rejected").glob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if match := re.search(r"# expect: ([a-z-]+)$", line):
                expected.add((path.name, number, match[1]))
    assert expected
    assert errors_of(HERE / "rejected", cache) == expected


@pytest.mark.xdist_group("typing")
def test_plugins_of_the_page_fit_their_contracts(cache: Path, tmp_path: Path) -> None:
    """A picker and a resolver copied from docs/extending.md pass --strict, as they are and as what they stand for."""
    picker, resolver, use = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL
    )
    fits = "\nfrom meshlib.{} as contract\nchecked: contract = BUILDER\n"
    (tmp_path / "first.py").write_text(picker + fits.format("pickers.base import PickerBuilder"))
    (tmp_path / "registry.py").write_text(
        resolver + fits.format("discovery.base import ResolverBuilder") + use
    )
    assert errors_of(tmp_path, cache) == set()
