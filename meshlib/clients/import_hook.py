"""Do something when a library has been imported, without importing it.

A finder in front of ``sys.meta_path`` asks the other finders, as if it were not there, and wraps the loader of the
libraries that somebody waits for. The wrapper gives the module its real loader back before the module's code runs,
so that ``importlib.resources``, ``inspect`` and the like see nothing of it. Other hooks of the kind may be there too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Finder:
    def __init__(self) -> None:
        self.waiting: dict[str, Callable[[], None]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.waiting:
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if finder is self or find is None else find(name, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    wrapped: Any = _Loader(spec.loader, self)
                    spec.loader = wrapped
                return spec
        return None

    def imported(self, name: str) -> None:
        callback = self.waiting.pop(name, None)
        if callback is not None:
            callback()


class _Loader:
    """The real loader, and the callback after it. Everything else about it is the real one's."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: Any) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._finder.imported(module.__name__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


_finder = _Finder()


def when_imported(name: str, callback: Callable[[], None]) -> None:
    """Call back once, in the importing thread, after the top-level module ``name`` was imported; now, if it is."""
    module = sys.modules.get(name)
    if module is not None:
        callback()
        return
    _finder.waiting[name] = callback
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def forget(name: str) -> None:
    """Nobody waits for this library any more; the last one takes the finder away."""
    _finder.waiting.pop(name, None)
    if not _finder.waiting and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
