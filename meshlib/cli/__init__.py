"""The command line: ``meshlib`` and ``python -m meshlib``."""

from __future__ import annotations


def main() -> None:
    """The ``meshlib`` command. click and the commands are loaded here, not when meshlib is imported."""
    from meshlib.cli.app import meshlib

    meshlib(prog_name="meshlib")
