"""Address policy: which addresses from a control plane may ever be dialled or programmed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Decides for one address text. Filled in by the model's engineer."""

    allow_loopback: bool = False
