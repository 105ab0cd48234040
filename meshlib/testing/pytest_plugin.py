"""The pytest plugin: meshlib is off in tests, unless a test asks for it (docs/testing-your-service.md).

Off: ``install()`` does nothing, wrapped clients take their usual way, nothing else can start: no thread, no socket, no
question to a control plane. A test asks by the fixture ``mesh_targets`` (fakes answer for targets) or the marker
``meshlib`` (as in production), a project by ``meshlib = on`` in its pytest configuration.

Every pytest run of whoever has meshlib installed loads this module, so it imports nothing that is not there already.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import pytest

from meshlib.clients.autostart import AUTOMATIC, DISABLED, IN_TESTS
from meshlib.runtime.under_test import under_test

if TYPE_CHECKING:
    from meshlib.testing.targets import MeshTargets

_FIXTURE = "mesh_targets"
_MARKER = "meshlib"
_OPTION = "meshlib"
_HOW = f"mark the test with @pytest.mark.{_MARKER}, or use the fixture {_FIXTURE}"
#: The pytest that switched meshlib off, and will lift it at its end.
_owner: dict[int, pytest.Config] = {}
_OFF = f"meshlib is off in tests: {_HOW}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(_OPTION, "meshlib in tests: off (unless a test asks for it) or on", default="off")


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before any conftest can install anything."""
    _begin(early_config)


def pytest_configure(config: pytest.Config) -> None:
    _begin(config)  # again: a plugin that a conftest names is loaded too late for the hook above
    config.addinivalue_line("markers", f"{_MARKER}: meshlib is on in this test, as it is in production")


def pytest_unconfigure(config: pytest.Config) -> None:
    """pytest may run inside a program that goes on, or inside another pytest."""
    if _owner.pop(id(config), None) is not None:
        _lift()


def pytest_report_header(config: pytest.Config) -> str:
    if under_test.off:
        return f"meshlib: off, unless a test asks for it (fixture {_FIXTURE}, marker {_MARKER})"
    if os.environ.get(DISABLED):
        return f"meshlib: off ({DISABLED})"
    return "meshlib: on" + (" (meshlib run)" if os.environ.get(AUTOMATIC) else "")


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Around the fixtures of the test too, whichever asks first."""
    names = getattr(item, "fixturenames", ())
    if under_test.off and (_FIXTURE in names or item.get_closest_marker(_MARKER) is not None):
        with _switched_on():
            yield
    else:
        yield


@pytest.fixture
def mesh_targets() -> Iterator[MeshTargets]:
    """``mesh_targets["orders.shop.svc"] = app_or_port``: what answers for targets and hosts in this test.

    See ``meshlib.testing.MeshTargets``. Code that calls ``install()``, at import or in the test, is balanced.
    """
    # Off still: asked for by request.getfixturevalue, which nobody sees coming.
    with _switched_on() if under_test.off else nullcontext():
        if os.environ.get(DISABLED):
            pytest.fail(f"{DISABLED} is set, and this test asks for meshlib: unset it", pytrace=False)
        from meshlib.testing.targets import MeshTargets

        targets = MeshTargets()
        under_test.stand_ins = targets
        _begin_anew()
        try:
            yield targets
        finally:
            targets.close()
            _begin_anew()
            under_test.stand_ins = None


def _begin(config: pytest.Config) -> None:
    chosen = config.getini(_OPTION)
    if chosen not in ("on", "off"):
        raise pytest.UsageError(f"{_OPTION} = {chosen!r} in {config.inipath}: write on or off")
    # `meshlib run -- pytest` asks for it, by more than a setting could.
    if chosen == "off" and not under_test.off and not os.environ.get(AUTOMATIC):
        _owner[id(config)] = config
        _impose()


def _impose() -> None:
    under_test.off = _OFF
    os.environ.setdefault(DISABLED, IN_TESTS)  # the tests' programs, and workers, inherit it


def _lift() -> None:
    under_test.off = ""
    if os.environ.get(DISABLED) == IN_TESTS:  # another value is the user's, and stays
        del os.environ[DISABLED]


@contextmanager
def _switched_on() -> Iterator[None]:
    _lift()
    install = sys.modules.get("meshlib.clients.install")
    if install is not None and not os.environ.get(DISABLED):
        install.resume()
    try:
        yield
    finally:
        install = sys.modules.get("meshlib.clients.install")
        if install is not None:
            install.suspend()
        _begin_anew()
        _impose()


def _begin_anew() -> None:
    """No Mesh of the process knows or watches anything, and the control thread ends."""
    process = sys.modules.get("meshlib.runtime.process")
    if process is not None:
        for mesh in process.users():
            mesh.reset()
