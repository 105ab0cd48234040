"""Links of pages that are read in the repository too.

There ``../examples/agent`` leads somewhere, and ``clients-httpx.md`` is a fitting text for a link. On the site a link
out of docs/ leads to the document's own page or becomes the path, as text; one that shows a file name shows the title.
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
_LINK = re.compile(r"\[(?P<text>[^\]\[]*)\]\((?P<up>(?:\.\./)+)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_BY_NAME = re.compile(r"\[(?:[\w-]+\.md)\]\((?=[^):]+\.md[)#])")
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
    if plain in ("", path, path.rpartition("/")[2]):
        return f"`{plain or path}`"
    return f"{text} (`{path}`)"


def replace_links(app: Sphinx, docname: str, source: list[str]) -> None:
    """Before the page is parsed."""
    inside = _BY_NAME.sub("[](", source[0])
    source[0] = _LINK.sub(lambda link: _told(link, docname), inside)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", replace_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
