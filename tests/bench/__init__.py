"""Figures, each against something in the same run: ``python -m tests.bench``. See ``__main__`` for the contract."""
