"""The userspace backend: listeners of our own instead of rules, for places that have no way into a kernel.

``translate`` maps frontends onto the configured addresses and says which one a socket serves; ``choose`` picks
endpoints with meshlib's pickers. ``streams`` and ``datagrams`` carry TCP and UDP, ``proxy`` holds all sockets on the
agent's asyncio loop, and ``backend`` is how the engine's worker reaches it.
"""

from __future__ import annotations

from meshlib.agent.backends.userspace.backend import OnLoop, UserspaceBackend
from meshlib.agent.backends.userspace.proxy import Proxy

__all__ = ["OnLoop", "Proxy", "UserspaceBackend"]
