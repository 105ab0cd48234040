"""For tests of code that uses meshlib or extends it (docs/testing-your-service.md, docs/testing.md).

``meshlib.testing.contracts`` holds the checks for pickers, by contract class. The names below are looked up on first
use (PEP 562): pytest imports this package in every run, for the plugin in it, and must not pay for the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlib.testing.clock import FakeClock
    from meshlib.testing.fake_apiserver import FakeApiServer
    from meshlib.testing.manual import ManualResolver
    from meshlib.testing.scripted import Reply, ScriptedEndpoint
    from meshlib.testing.targets import MeshTargets

__all__ = ["FakeApiServer", "FakeClock", "ManualResolver", "MeshTargets", "Reply", "ScriptedEndpoint"]

_HOMES = {
    "FakeApiServer": "meshlib.testing.fake_apiserver",
    "FakeClock": "meshlib.testing.clock",
    "ManualResolver": "meshlib.testing.manual",
    "MeshTargets": "meshlib.testing.targets",
    "Reply": "meshlib.testing.scripted",
    "ScriptedEndpoint": "meshlib.testing.scripted",
}


if not TYPE_CHECKING:  # for a type checker every name is declared above, and an unknown one is an error

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in _HOMES:
            raise AttributeError(f"module 'meshlib.testing' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
