"""The acceptance list of the kernel path, and the tests that show its lines.

``python -m tests.acceptance`` writes docs/kernel-acceptance.md.
"""
