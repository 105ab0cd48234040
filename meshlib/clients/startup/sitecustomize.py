"""Runs when Python starts under ``meshlib run``: this folder, and nothing else in it, is then first in PYTHONPATH.

Does what the environment says, then gives way to the ``sitecustomize`` that would have run without us. Must not raise,
print or load more than it needs: every Python process that the program starts comes through here, whatever it is.
"""

from __future__ import annotations


def _give_way() -> None:
    """Run the next sitecustomize on the path under its own name, and take our folder out of this process's path."""
    import os
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if not entry or os.path.abspath(entry) != here]
    spec = PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)  # what it raises is its own affair, reported by site as ever


def _install() -> None:
    import os
    import sys

    if not os.environ.get("MESHLIB_INSTALL"):
        return
    try:
        from meshlib.clients.autostart import start
    except ImportError as error:
        # Another Python, without meshlib. Told once, by the program that was named, not by all of its children.
        if os.environ.get("MESHLIB_RUN_PID") == str(os.getpid()):
            print(
                f"meshlib run: {sys.executable} cannot import meshlib, nothing is balanced: {error}",
                file=sys.stderr,
            )
        return
    start()


_install()
_give_way()
