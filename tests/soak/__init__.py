"""Long runs: a program that uses everything at once while its cluster is never quiet (``make soak``)."""
