"""Real servers for the tests: a Kubernetes API server, DNS servers, HTTP and gRPC backends, all on loopback.

Nothing in here is a mock. Each class is a context manager that starts real programs on free ports and stops
them by their process id. `tests/conftest.py` offers them as fixtures.
"""
