"""The table of built-in schemes names real builders and imports nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from meshlib.discovery.builtin import BUILTIN


@pytest.mark.parametrize("scheme", sorted(BUILTIN))
def test_every_scheme_has_a_builder(scheme: str) -> None:
    """Each entry leads to a builder that lists the scheme as its own."""
    module, _, attribute = BUILTIN[scheme].partition(":")
    assert scheme in getattr(import_module(module), attribute).schemes


def test_the_table_is_lazy() -> None:
    """Reading the table loads no resolver, and the DNS resolver itself loads dnspython with its first question only."""
    code = (
        "import sys, meshlib.discovery.builtin\n"
        "assert not any(m.startswith('meshlib.discovery.dns') for m in sys.modules)\n"
        "import meshlib.discovery.dns.resolver, meshlib.discovery.dns.lookup\n"
        "assert 'dns' not in sys.modules, 'dnspython was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
