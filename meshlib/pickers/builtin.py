"""The built-in policies by name. Nothing is imported until a name is used."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: name -> ``module:attribute`` of its PickerBuilder.
BUILTIN: Mapping[str, str] = MappingProxyType(
    {
        name: f"meshlib.pickers.{name}:BUILDER"
        for name in (
            "round_robin",
            "weighted_round_robin",
            "random",
            "weighted_random",
            "least_connections",
            "least_request",
            "peak_ewma",
            "ring_hash",
            "maglev",
            "rendezvous",
        )
    }
)
