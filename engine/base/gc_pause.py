"""Pauses Python's cyclic garbage collector while many objects without cycles are created."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause it for the whole process; no effect if it is already paused."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def collection_spared() -> Iterator[None]:
    """Pause it, and spare all that is there at the end from it for good: for a program whose
    records last as long as it does. To look through a plan of very many tensors, a few times until
    they count as old, takes longer than to make the graph."""
    with collection_paused():
        yield
        gc.freeze()
