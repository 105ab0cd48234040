"""The key of hash policies, read from a call's metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshlib.pickers.hash_key import HashKeySource
from meshlib.runtime.factory import client_identity
from meshlib.runtime.handle import TargetHandle

#: Given a call's metadata as the caller passed it (None without), the key, or None to pick at random.
HashKey = Callable[[Any], "str | bytes | None"]
KeyFunction = HashKey


def key_function(handle: TargetHandle, given: HashKey | None = None) -> KeyFunction:
    """How the calls of a channel find their key. ``given`` in code wins over the setting, which may change live."""
    if given is not None:
        return given

    def key(metadata: Any) -> str | bytes | None:
        spec = handle.hash_key
        if spec is None:
            return None
        if spec.source is HashKeySource.CLIENT:
            return client_identity()
        return spec.from_metadata(metadata) if metadata is not None else None

    return key
