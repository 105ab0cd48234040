"""Settings of pickers: every mistake is refused with its place, what was given and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.errors import ConfigError
from meshlib.runtime.registry import picker_builder


@pytest.mark.parametrize(
    ("picker", "settings", "key", "words"),
    [
        ("round_robin", {"weights": True}, "weights", "no settings"),
        ("random", {3: 1}, "3", "unknown"),
        ("peak_ewma", {"slow_start_window": "10"}, "slow_start_window", "'10' is not a number from 0 to 600"),
        ("peak_ewma", {"slow_start_window": True}, "slow_start_window", "True is not a number"),
        ("peak_ewma", {"slow_start_window": float("nan")}, "slow_start_window", "nan is not"),
        ("least_request", {"slow_start_window": -1}, "slow_start_window", "-1 is not"),
        ("least_request", {"slow_start": 1}, "slow_start", "known: slow_start_window"),
        ("ring_hash", {"min_ring_size": 0}, "min_ring_size", "0 is not a whole number from 1 to 262144"),
        ("ring_hash", {"min_ring_size": 1024.0}, "min_ring_size", "1024.0 is not"),
        ("ring_hash", {"max_ring_size": 10**9}, "max_ring_size", "1000000000 is not"),
        (
            "ring_hash",
            {"min_ring_size": 100, "max_ring_size": 10},
            "min_ring_size",
            "at most max_ring_size (10)",
        ),
        (
            "ring_hash",
            {"hash_balance_factor": 99},
            "hash_balance_factor",
            "99 is not 0 (no bound) or a whole number",
        ),
        ("maglev", {"table_size": 65536}, "table_size", "65536 is not a prime number"),
        ("maglev", {"table_size": 5_000_011}, "table_size", "from 2 to 655373"),
        ("maglev", {"table_size": [1] * 1000}, "table_size", "..."),
        ("rendezvous", {"hash_balance_factor": None}, "hash_balance_factor", "None is not"),
        ("maglev", {"x\n" * 200: 1}, "'x\\nx", "unknown"),
    ],
)
def test_mistakes_are_named(picker: str, settings: dict[Any, Any], key: str, words: str) -> None:
    """The error has the place as it was given, the key, and what is allowed; it stays on one short line."""
    with pytest.raises(ConfigError) as caught:
        picker_builder(picker).parse_config(settings, "meshlib.toml: picker.")
    assert caught.value.where.startswith(f"meshlib.toml: picker.{key}")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_larger_minimum_raises_the_default_maximum() -> None:
    """Asking for a larger ring needs one setting, not two."""
    config: Any = picker_builder("ring_hash").parse_config({"min_ring_size": 100_000}, "x.")
    assert (config.min_ring_size, config.max_ring_size) == (100_000, 100_000)
