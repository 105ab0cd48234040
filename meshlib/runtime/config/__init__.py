"""Configuration: what may be set, where it may come from, and which place wins (decision D11).

Per key: code > ``MESHLIB_*`` > file > Service annotation > default. Tables (aliases, address, discovery, target) are
merged entry by entry under the same rule. Every value remembers its place, for error messages and ``meshlib doctor``.
"""

from __future__ import annotations

from meshlib.runtime.config.environment import address_policy, alias_targets, target_defaults
from meshlib.runtime.config.load import load_config
from meshlib.runtime.config.settings import AddressSettings, Config, TargetSettings

__all__ = [
    "AddressSettings",
    "Config",
    "TargetSettings",
    "address_policy",
    "alias_targets",
    "load_config",
    "target_defaults",
]
