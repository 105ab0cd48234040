"""Every registered picker keeps the contract of its class: the built-in ones and those of installed plugins."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import pytest

from meshlib.pickers.builtin import BUILTIN
from meshlib.runtime.registry import PICKER_GROUP, picker_builder
from meshlib.testing import contracts

NAMES = sorted({*BUILTIN, *(entry.name for entry in metadata.entry_points(group=PICKER_GROUP))})
#: Each policy with its default settings, and those that change how it works.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "ring_hash": [{}, {"min_ring_size": 4096}, {"hash_balance_factor": 150}],
    "maglev": [{}, {"table_size": 4099}, {"hash_balance_factor": 150}],
    "rendezvous": [{}, {"hash_balance_factor": 150}],
    "peak_ewma": [{}, {"slow_start_window": 0}],
    "least_request": [{}, {"slow_start_window": 0}],
}
CASES = [
    pytest.param(name, settings, check, id=f"{name}-{number}-{check.__name__}")
    for name in NAMES
    for number, settings in enumerate(SETTINGS.get(name, [{}]))
    for check in contracts.checks_for(picker_builder(name))
]


@pytest.mark.parametrize(("name", "settings", "check"), CASES)
def test_contract(name: str, settings: Mapping[str, object], check: contracts.Check) -> None:
    """The check's own docstring says what it proves."""
    check(picker_builder(name), settings)


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_builder_is_registered_under_its_own_name(name: str) -> None:
    """The table of built-ins, the builder and the pickers it makes agree on name and class."""
    builder = picker_builder(name)
    assert builder.name == name
    picker = contracts.build(builder, {}, contracts.subchannels(2))
    assert picker.contract is builder.contract
