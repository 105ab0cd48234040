"""Links that leave docs/: the pages are read in the repository too, where ``../examples/agent`` leads somewhere.

On the site a link to a document that has a page of its own leads there, and every other one becomes the path, as text.
A path that does not exist is a warning, which the build takes for an error.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).parents[2]
#: Documents of the repository's top that the site includes.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
_LINK = re.compile(r"\[(?P<text>[^\]\[]+)\]\((?P<up>(?:\.\./)+)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_log = logging.getLogger(__name__)


def _told(link: re.Match[str], docname: str) -> str:
    text, path = link["text"], link["path"].rstrip("/")
    if link["up"].count("../") <= docname.count("/"):
        return link[0]  # from a folder of docs/ to docs/ itself
    if path in PAGES:
        return f"[{text}]({'../' * docname.count('/')}{PAGES[path]}{link['anchor'] or ''})"
    if not (ROOT / path).exists():
        _log.warning("a link to %s, which does not exist", path, location=docname, type="outside_links")
    plain = text.strip("`")
    if plain in (path, path.rpartition("/")[2]):
        return f"`{path if '/' not in plain and len(path) < 40 else plain}`"
    return f"{text} (`{path}`)"


def replace_links(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = _LINK.sub(lambda link: _told(link, docname), source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", replace_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
