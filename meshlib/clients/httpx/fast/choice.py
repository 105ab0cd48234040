"""Which requests the fast wire serves; the others go to httpcore."""

from __future__ import annotations

from typing import Any

#: httpcore's own backends for TCP. With any other, the application wants to make the connections itself.
_PLAIN_BACKENDS = frozenset({"SyncBackend", "AutoBackend", "AnyIOBackend"})


class Choice:
    """``is_fast(request)`` for the requests of one engine."""

    __slots__ = ("_plain", "_secure")

    def __init__(self, core: Any, settings: dict[str, Any]) -> None:
        kind = type(settings["network_backend"])
        ours = kind.__name__ in _PLAIN_BACKENDS and kind.__module__.partition(".")[0] == core.__name__
        self._plain = ours and (settings["http1"] or not settings["http2"])
        self._secure = ours and not settings["http2"]  # else ALPN decides, and httpcore speaks HTTP/2

    def is_fast(self, method: bytes, secure: bool, extensions: Any) -> bool:
        """No CONNECT (proxies), and no ``trace``: whoever traces wants httpcore's steps."""
        return (
            (self._secure if secure else self._plain) and method != b"CONNECT" and "trace" not in extensions
        )
