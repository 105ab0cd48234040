"""Netlink, spoken directly: bytes are made and read by pure modules, ``socket`` alone sends and receives them.

``messages`` frames, ``exchange`` tells what became of requests, ``generic``, ``ipvs``, ``rtnl`` and ``conntrack`` know
one family each.
"""
