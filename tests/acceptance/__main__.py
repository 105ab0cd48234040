"""Writes the page; exit code 1 when a line has neither a test nor a reason."""

from __future__ import annotations

import sys

from tests.acceptance.page import PAGE, lines, page, problems, shown

listed, by = lines(), shown()
PAGE.write_text(page(listed, by))
wrong = problems(listed, by)
print("\n".join(wrong) or f"{PAGE.name}: {len(listed)} lines")
sys.exit(bool(wrong))
