"""docs/versions.md says what pyproject.toml, the lanes and the code say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from meshlib.cli.doctor.versions import OLDEST_KUBERNETES
from meshlib.clients.httpx.flavour import LIBRARIES
from meshlib.discovery.kubernetes.versions import SliceApi

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "versions.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LANES = (ROOT / "scripts" / "versions.sh").read_text()
ROWS = {
    cells[0]: cells[1:]
    for line in PAGE.splitlines()
    if line.startswith("| ") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
}


def bound(name: str, lines: list[str]) -> re.Match[str]:
    found = [match for line in lines if (match := re.fullmatch(rf"{name}>=([\d.]+)(?:,<([\d.]+))?", line))]
    assert len(found) == 1, name
    return found[0]


def test_python() -> None:
    """The oldest is what pip asks for; the newest is the last that the metadata names, and has a lane."""
    classifiers = [
        line.rpartition(" ")[2]
        for line in PROJECT["project"]["classifiers"]
        if line.startswith("Programming Language :: Python :: 3.")
    ]
    oldest, newest, _ = ROWS["Python"]
    assert PROJECT["project"]["requires-python"] == f">={oldest}"
    assert (classifiers[0], classifiers[-1]) == (oldest, newest)
    assert f"other_python.sh {newest}" in (ROOT / "Makefile").read_text()


def test_lower_bounds() -> None:
    """httpx, httpcore and grpcio are dependencies; httpx2, which is none, has a lane of its oldest."""
    for name in ("httpx", "httpcore", "grpcio"):
        assert bound(name, PROJECT["project"]["dependencies"])[1] == ROWS[name][0]
    assert f"below {bound('httpx', PROJECT['project']['dependencies'])[2]}" == ROWS["httpx"][1]
    oldest = ROWS["httpx2"][0]
    assert f"httpx2=={oldest}.0" in LANES
    assert bound("httpx2", PROJECT["dependency-groups"]["test"])[1] == oldest


def test_every_wrapped_library_has_a_row() -> None:
    """A library that the clients learn to wrap is stated here."""
    assert {*LIBRARIES, "httpcore", "grpcio", "Python", "Kubernetes"} <= ROWS.keys()
    assert set(LIBRARIES) == {"httpx", "httpx2"}


def test_kubernetes() -> None:
    """The versions of the API that discovery can read, the oldest of which came with the oldest Kubernetes."""
    assert [each.value for each in SliceApi] == [
        "discovery.k8s.io/v1",
        "discovery.k8s.io/v1beta1",
        "v1 Endpoints",
    ]
    oldest, newest, below = ROWS["Kubernetes"]
    assert oldest == ".".join(map(str, OLDEST_KUBERNETES))
    assert SliceApi.V1.value in newest
    assert "Endpoints" in below


def test_lanes() -> None:
    """`make versions` has the sets that the page tells of."""
    sets = re.search(r'for set in "\$\{@:-([^}]*)\}"', LANES)
    assert sets is not None
    assert sets[1].split() == ["oldest", "oldest-httpx2", "newest", "unsupported"]
    assert re.search(r"^versions:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_changelog_says_the_same_of_versions() -> None:
    """Semantic versions, and what 0.x means."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "Semantic Versioning" in changelog
    assert PROJECT["project"]["version"].startswith("0."), "docs/versions.md speaks of 0.x"
