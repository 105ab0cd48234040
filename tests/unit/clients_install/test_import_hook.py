"""The import hook: called back once, after the import; nobody else notices; other hooks may be there too."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from meshlib.clients import import_hook

NAME = "meshlib_test_library"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that can be imported, and is forgotten afterwards. ``during`` is what its code sees of itself."""
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "__init__.py").write_text("during = (__spec__.loader, __loader__)\nfrom . import inner\n")
    (folder / "inner.py").write_text("")
    (folder / "data.txt").write_text("content")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    import_hook.forget(NAME)
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


def test_called_once_after_the_import(library: Path) -> None:
    """The module is complete when the callback runs; nothing is imported by asking."""
    seen: list[bool] = []
    import_hook.when_imported(NAME, lambda: seen.append(hasattr(sys.modules[NAME], "inner")))
    assert NAME not in sys.modules
    importlib.import_module(NAME)
    importlib.import_module(f"{NAME}.inner")
    importlib.reload(sys.modules[NAME])
    assert seen == [True]


def test_at_once_when_it_is_imported(library: Path) -> None:
    """Without touching the finders."""
    importlib.import_module(NAME)
    before, seen = list(sys.meta_path), []
    import_hook.when_imported(NAME, lambda: seen.append(1))
    assert (seen, sys.meta_path) == ([1], before)


def test_the_module_sees_its_real_loader(library: Path) -> None:
    """importlib.resources, inspect and the module itself find what they always do."""
    import importlib.resources
    import inspect

    import_hook.when_imported(NAME, lambda: None)
    module: Any = importlib.import_module(NAME)
    assert [type(loader) for loader in (*module.during, module.__spec__.loader, module.__loader__)] == [
        SourceFileLoader
    ] * 4
    assert importlib.resources.files(NAME).joinpath("data.txt").read_text() == "content"
    assert "during" in inspect.getsource(module)


def test_find_spec_alone_calls_nobody(library: Path) -> None:
    """Asking whether a library is installed is not importing it; the loader answers as the real one."""
    seen: list[int] = []
    import_hook.when_imported(NAME, lambda: seen.append(1))
    spec = importlib.util.find_spec(NAME)
    assert spec is not None
    assert spec.loader.get_filename(NAME) == str(library / "__init__.py")  # type: ignore[union-attr]
    assert seen == []
    importlib.import_module(NAME)
    assert seen == [1]


def test_a_failing_import_fails_and_may_be_tried_again(library: Path) -> None:
    """The exception is the library's own; the callback waits for a success."""
    seen: list[int] = []
    code = (library / "__init__.py").read_text()
    (library / "__init__.py").write_text("raise RuntimeError('broken')\n")
    import_hook.when_imported(NAME, lambda: seen.append(1))
    with pytest.raises(RuntimeError, match="broken"):
        importlib.import_module(NAME)
    assert seen == []
    (library / "__init__.py").write_text(code + "# mended, and of another size\n")
    importlib.invalidate_caches()
    importlib.import_module(NAME)
    assert seen == [1]


@pytest.mark.parametrize("ours_first", [True, False])
def test_beside_another_hook_of_the_kind(library: Path, ours_first: bool) -> None:
    """One that looks through importlib.util.find_spec, as wrapt's and tracers' do, in front of ours or behind."""
    seen: list[str] = []

    class Loader:
        def __init__(self, loader: Any) -> None:
            self.loader = loader

        def create_module(self, spec: ModuleSpec) -> ModuleType | None:
            made: ModuleType | None = self.loader.create_module(spec)
            return made

        def exec_module(self, module: ModuleType) -> None:
            self.loader.exec_module(module)
            seen.append("theirs")

    class Finder:
        busy = False

        def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
            if name != NAME or self.busy:
                return None
            self.busy = True
            try:
                spec = importlib.util.find_spec(name)
            finally:
                self.busy = False
            assert spec is not None
            made: Any = Loader(spec.loader)
            spec.loader = made
            return spec

    theirs: Any = Finder()
    if ours_first:
        sys.meta_path.insert(0, theirs)
    import_hook.when_imported(NAME, lambda: seen.append("ours"))
    if not ours_first:
        sys.meta_path.insert(0, theirs)
    try:
        importlib.import_module(NAME)
    finally:
        sys.meta_path.remove(theirs)
    assert sorted(seen) == ["ours", "theirs"]


def test_forgotten_leaves_no_trace(library: Path) -> None:
    """The last one takes the finder away."""
    before = list(sys.meta_path)
    import_hook.when_imported(NAME, lambda: pytest.fail("called"))
    import_hook.forget(NAME)
    assert sys.meta_path == before
    importlib.import_module(NAME)


def test_a_library_that_is_not_there(library: Path) -> None:
    """The usual ModuleNotFoundError."""
    missing = NAME + "_missing"
    import_hook.when_imported(missing, lambda: pytest.fail("called"))
    try:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(missing)
    finally:
        import_hook.forget(missing)
