"""Python's cyclic garbage collector, kept from walking over a cluster again and again.

What a cluster is made of are values without cycles, which go by counting. The collector cannot know that, and looks at
everything that is alive each time enough was made: over a full load of 10,000 Services with 5 endpoints it takes more
time than compiling them.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undisturbed() -> Iterator[None]:
    """No collection meanwhile, in any thread: for work that ends soon and makes hardly any cycle. May be nested."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def settle() -> None:
    """What is alive now stays: the collector leaves it alone from here on. For a process that has come to what it will
    mostly consist of; counting still frees what goes. What the first lists and transactions took and gave back returns
    to the system, where the C library can be told to."""
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
