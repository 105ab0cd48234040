"""Which one now: pick one of N from an immutable snapshot. Pure: time, randomness and locks are arguments."""
