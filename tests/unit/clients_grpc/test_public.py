"""The public names, and what importing them costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import grpc
import pytest

import meshlib.grpc
import meshlib.grpc.aio


def test_importing_loads_no_grpc() -> None:
    """``import meshlib.grpc`` and ``meshlib.grpc.aio`` load grpc only when a name is used."""
    program = (
        "import sys, meshlib.grpc, meshlib.grpc.aio; early = 'grpc' in sys.modules;"
        "meshlib.grpc.insecure_channel; print(early, 'grpc' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("name", ["insecure_channel", "secure_channel"])
@pytest.mark.parametrize(("ours", "theirs"), [(meshlib.grpc, grpc), (meshlib.grpc.aio, grpc.aio)])
def test_signatures_are_grpcs_own_and_more_by_keyword(name: str, ours: object, theirs: object) -> None:
    """Every argument of grpc's function is there, in its place; what is added can only be given by keyword."""
    mine = list(inspect.signature(getattr(ours, name)).parameters.values())
    expected = list(inspect.signature(getattr(theirs, name)).parameters.values())
    assert [(p.name, p.default) for p in mine[: len(expected)]] == [(p.name, p.default) for p in expected]
    assert {p.kind for p in mine[len(expected) :]} == {inspect.Parameter.KEYWORD_ONLY}


def test_unknown_names_are_attribute_errors() -> None:
    """A misspelt name fails as it does on any module; dir() lists what there is."""
    for module in (meshlib.grpc, meshlib.grpc.aio):
        with pytest.raises(AttributeError, match="insecure_chanel"):
            module.insecure_chanel  # noqa: B018
        assert "insecure_channel" in dir(module)
