"""``python -m meshlib``."""

from __future__ import annotations

from meshlib.cli import main

if __name__ == "__main__":
    main()
