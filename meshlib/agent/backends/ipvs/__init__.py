"""The ipvs backend: virtual servers of the kernel, their addresses made local, and what IPVS itself cannot say left to
a companion table.

``translate`` says what a frontend needs, ``servers`` programs virtual servers and destinations, ``anyip`` or ``dummy``
the addresses, ``backend`` puts the parts together. Everything is spoken over netlink: no program is started.
"""

from meshlib.agent.backends.ipvs.backend import IpvsBackend

__all__ = ["IpvsBackend"]
