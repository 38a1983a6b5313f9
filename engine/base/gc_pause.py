"""Pause Python's cyclic garbage collector while many objects without cycles are created."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause collection for the whole process; no effect if it is already paused."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def collection_spared() -> Iterator[None]:
    """Pause collection, then exclude all objects that exist at the end from later collections.

    For programs that keep their records until they end: searching the records of very many tensors
    for cycles, several times until they count as old, takes longer than building the graph.
    """
    with collection_paused():
        yield
        gc.freeze()
