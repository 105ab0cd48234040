"""Flows that the kernel remembers beyond a change of the rules: which of them must be forgotten, and forgetting them.

TCP is left alone: its connections end by themselves or go on rightly. A UDP "connection" with a fixed source port lives
as long as somebody sends, and keeps the endpoint of its first packet.
"""
