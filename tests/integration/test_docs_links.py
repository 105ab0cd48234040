"""Links of the pages on the site: docs/_extensions/outside_links.py. (`make docs` builds the whole site.)"""

from __future__ import annotations

import logging
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPLACE = runpy.run_path(str(ROOT / "docs" / "_extensions" / "outside_links.py"))["replace_links"]


def on_the_site(text: str, docname: str = "page") -> str:
    source = [text]
    REPLACE(None, docname, source)
    return source[0]


@pytest.mark.parametrize(
    ("docname", "written", "shown"),
    [
        ("page", "[the changes](../CHANGELOG.md#unreleased)", "[the changes](changelog.md#unreleased)"),
        ("decisions/page", "[it](../../SECURITY.md)", "[it](../security.md)"),
        ("decisions/page", "[urls](../urls.md#the-table)", "[urls](../urls.md#the-table)"),
        ("page", "[examples/agent](../examples/agent)", "`examples/agent`"),
        ("page", "[alerts.yaml](../examples/agent/alerts.yaml)", "`alerts.yaml`"),
        (
            "page",
            "[a unit](../examples/agent/meshlib-agent.service)",
            "a unit (`examples/agent/meshlib-agent.service`)",
        ),
        ("page", "[urls.md](urls.md)", "[](urls.md)"),
        ("page", "[kubernetes.md](kubernetes.md#rights)", "[](kubernetes.md#rights)"),
        ("page", "[SECURITY.md](../SECURITY.md)", "[](security.md)"),
        ("page", "[elsewhere](https://example.com/../a.md)", "[elsewhere](https://example.com/../a.md)"),
    ],
)
def test_a_link_on_the_site(docname: str, written: str, shown: str) -> None:
    """To a page of the site, or the path as text; a file's name gives way to the page's title."""
    assert on_the_site(f"See {written}, there.", docname) == f"See {shown}, there."


def test_a_path_that_does_not_exist_is_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which `make docs` takes for an error."""
    monkeypatch.setattr(logging.getLogger("sphinx"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        on_the_site("[gone](../examples/gone)")
    assert "examples/gone" in caplog.text
