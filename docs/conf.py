"""Sphinx: the pages of this folder as a site. ``make docs`` builds it into build/docs, with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

import meshlib

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "meshlib"
author = "The meshlib authors"
project_copyright = author
version = release = meshlib.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "outside_links"]
exclude_patterns = ["_extensions"]
myst_heading_anchors = 3
highlight_language = "none"  # a block without a language is output or a command, not Python

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"meshlib {release}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
