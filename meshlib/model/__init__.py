"""What exists: immutable facts and the pure functions over them. No IO, clock or randomness."""
