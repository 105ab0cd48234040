"""The iptables backend: chains of our own, written by one iptables-restore per change. The last resort of mode auto.

``translate`` turns frontends into rules of chains; ``tables`` knows what is in them, writes the text that leads to what
is wanted, and reads it back from iptables-save; ``backend`` runs the programs.
"""

from __future__ import annotations

from meshlib.agent.backends.iptables.backend import IptablesBackend

__all__ = ["IptablesBackend"]
