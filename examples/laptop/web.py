"""The service under development: calls ``orders`` by the name that it has in the cluster, and knows nothing of laptops.

MESHLIB_ENV=dev meshlib run -- python web.py
"""

from __future__ import annotations

import sys

import httpx

URL = "http://orders.shop.svc/items"

if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    with httpx.Client(timeout=30.0) as client:
        for _ in range(count):
            print(client.get(URL).raise_for_status().text, end="", flush=True)
