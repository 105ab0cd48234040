"""docs/api.md has every public name, and each of them says what it is."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
MODULES = ("meshlib", "meshlib.grpc", "meshlib.grpc.aio", "meshlib.testing")
#: Modules among the public names; their own names are on the page.
INSIDE = {"meshlib.errors", "meshlib.grpc.aio"}
#: What ``insecure_channel`` returns: users see a ``grpc.Channel``.
NOT_CALLED = {"meshlib.grpc.MeshChannel", "meshlib.grpc.aio.AioMeshChannel"}
PUBLIC = [
    f"{module}.{name}"
    for module in MODULES
    for name in import_module(module).__all__
    if f"{module}.{name}" not in INSIDE | NOT_CALLED
]


def documented() -> set[str]:
    """The names of autofunction and autoclass, and the listed members of automodule."""
    found = set(re.findall(r"\.\. auto(?:function|class|module):: ([\w.]+)", PAGE))
    for module, names in re.findall(r"\.\. automodule:: ([\w.]+)\n +:members: (.+)", PAGE):
        found |= {f"{module}.{name.strip()}" for name in names.split(",")}
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_on_the_page(name: str) -> None:
    """With a docstring: the page has nothing else to show."""
    assert name in documented()
    module, _, attribute = name.rpartition(".")
    assert inspect.getdoc(getattr(import_module(module), attribute))


def test_the_names_of_the_page_exist() -> None:
    """Also the contracts of plugins, which no ``__all__`` lists."""
    for name in documented():
        module, _, attribute = name.rpartition(".")
        try:
            import_module(name)
        except ModuleNotFoundError:
            assert hasattr(import_module(module), attribute), name
