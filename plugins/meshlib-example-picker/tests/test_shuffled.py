"""The example picker keeps meshlib's contract, and does what its name says."""

from __future__ import annotations

from importlib import metadata

import pytest
from meshlib_example_picker import BUILDER

from meshlib.errors import ConfigError
from meshlib.testing import contracts


@pytest.mark.parametrize("settings", [{}, {"rounds": 3}], ids=str)
@pytest.mark.parametrize("check", contracts.checks_for(BUILDER), ids=lambda check: check.__name__)
def test_contract(check: contracts.Check, settings: dict[str, object]) -> None:
    """meshlib's own checks for a picker of this class; each one's docstring says what it proves."""
    check(BUILDER, settings)


def test_entry_point() -> None:
    """The installed package is found under its name."""
    (entry,) = metadata.entry_points(group="meshlib.pickers", name="shuffled")
    assert entry.load() is BUILDER


def test_everybody_once_a_round_in_changing_order() -> None:
    """Each round is a permutation; the order stays for as many rounds as were set, then it is another."""
    members = contracts.subchannels(8)
    picker = contracts.build(BUILDER, {"rounds": 2}, members)
    rounds = [tuple(picker.pick() for _ in members) for _ in range(10)]
    assert all(set(order) == set(members) for order in rounds)
    assert all(rounds[n] == rounds[n + 1] for n in range(0, 10, 2))
    assert len(set(rounds)) == 5


@pytest.mark.parametrize("settings", [{"rounds": "5"}, {"rounds": True}, {"rounds": 0}, {"round": 5}])
def test_bad_settings_name_the_place(settings: dict[str, object]) -> None:
    """A wrong value or key is refused with where it stands."""
    with pytest.raises(ConfigError, match=r"meshlib\.toml: round"):
        BUILDER.parse_config(settings, "meshlib.toml: ")
