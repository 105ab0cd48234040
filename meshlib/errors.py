"""Every error that meshlib raises on its own account.

The HTTP and gRPC wrappers raise the wrapped library's own exception types (so that existing ``except`` clauses keep
working) and put one of these into ``__cause__``. Nothing here imports anything.
"""

from __future__ import annotations


class MeshError(Exception):
    """Root of all meshlib errors."""


class TargetError(MeshError, ValueError):
    """A target string that cannot be parsed.

    ``text`` is the whole input, ``start``/``end`` delimit the offending part, ``reason`` says what is wrong and
    ``hint`` what to write instead. ``str()`` shows the input with a caret line below the offending part.
    """

    def __init__(self, text: str, start: int, end: int, reason: str, hint: str = "") -> None:
        self.text, self.start, self.end, self.reason, self.hint = text, start, end, reason, hint
        super().__init__(text, start, end, reason, hint)

    def __str__(self) -> str:
        shown = self.text if self.text.isprintable() else repr(self.text)[1:-1]
        if shown != self.text or len(shown) > 200:  # offsets no longer line up: name the part instead
            where = f"  at {self.text[self.start : self.end][:80]!r}"
            shown = shown[:200]
        else:
            where = "  " + " " * self.start + "^" * max(1, self.end - self.start)
        hint = f"\n  {self.hint}" if self.hint else ""
        return f"invalid target: {self.reason}\n  {shown}\n{where}{hint}"


class ConfigError(MeshError, ValueError):
    """A setting that cannot be used. ``where`` names the place (file and key, variable, annotation or argument)."""

    def __init__(self, where: str, reason: str, hint: str = "") -> None:
        self.where, self.reason, self.hint = where, reason, hint
        super().__init__(where, reason, hint)

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f" ({self.hint})" if self.hint else "")


class DataError(MeshError, ValueError):
    """Data from a control plane, record or file that cannot be used: counted and skipped, never fatal."""

    def __init__(self, where: str, reason: str) -> None:
        self.where, self.reason = where, reason
        super().__init__(where, reason)

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class DiscoveryError(MeshError):
    """A control plane could not be asked, or gave an answer that says nothing about endpoints."""


class AccessDenied(DiscoveryError):
    """The control plane refused us (HTTP 401/403). ``fix`` is what to apply, ready to paste."""

    def __init__(self, message: str, fix: str = "") -> None:
        self.fix = fix
        super().__init__(message, fix)

    def __str__(self) -> str:
        return str(self.args[0]) + (f"\n{self.fix}" if self.fix else "")


class ResolveError(MeshError):
    """A target cannot give an endpoint now. Children say why."""


class ServiceNotFound(ResolveError):
    """The control plane says that the Service (or name) does not exist."""


class UnknownPort(ResolveError):
    """The Service exists but does not list the port asked for; the message lists the ports it has."""


class NoEndpoints(ResolveError):
    """The set is *known* to be empty: nothing anywhere may receive traffic."""


class NoLocalEndpoints(NoEndpoints):
    """``internalTrafficPolicy: Local`` and no eligible endpoint on this node, though there are some elsewhere."""


class NotSynced(ResolveError):
    """Nothing is known yet and DNS could not help either; ``__cause__`` holds the discovery error, if there is one."""


class HeldBack(ResolveError):
    """The Service asks its callers not to be balanced (``meshlib.dev/mode``), which was learned while a request waited:
    it goes the bare way. Never leaves the clients."""


class PickTimeout(ResolveError, TimeoutError):
    """No endpoint became available within the caller's timeout."""


class MeshClosed(MeshError, RuntimeError):
    """The Mesh (or the process runtime) was closed."""
