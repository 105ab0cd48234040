"""The key of hash policies, read from a call's metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshlib.pickers.hash_key import HashKeySource
from meshlib.runtime.factory import client_identity
from meshlib.runtime.handle import TargetHandle

#: Given a call's metadata as the caller passed it (None without), the key, or None to pick at random.
HashKey = Callable[[Any], "str | bytes | None"]


class Keys:
    """How the calls of a channel find their key. ``given`` in code wins over the setting, which may change live."""

    __slots__ = ("_given", "_handle", "always")

    def __init__(self, handle: TargetHandle, given: HashKey | None = None) -> None:
        self._handle = handle
        self._given = given
        self.always = given is not None

    def __call__(self, metadata: Any, /) -> str | bytes | None:
        if self._given is not None:
            return self._given(metadata)
        spec = self._handle.hash_key
        if spec is None:
            return None
        if spec.source is HashKeySource.CLIENT:
            return client_identity()
        return spec.from_metadata(metadata) if metadata is not None else None
