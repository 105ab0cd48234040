"""meshlib: the service mesh that is a Python import.

Importing starts nothing and loads none of httpx, grpc, kubernetes or dns; the public names are looked up on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
