"""The only room that creates threads, event loops, locks, fork hooks and clocks."""
