"""The nftables backend: one table per family, static rules, and a map element for every fact about a frontend.

``expressions`` and ``messages`` speak nf_tables over netlink. ``layout`` says which sets there are and ``rules`` what
the chains do; ``translate`` turns frontends into elements, and ``companion`` those of a kernel whose virtual servers
balance. ``backend`` sends transactions and reads the table back.
"""

from __future__ import annotations

from meshlib.agent.backends.nftables.backend import NftablesBackend

__all__ = ["NftablesBackend"]
