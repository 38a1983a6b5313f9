"""Page arithmetic: block sizes, and the start of aligned reads."""

from __future__ import annotations

PAGE = 4096
"""Alignment in bytes of blocks, and of direct reads and writes."""


_CLASS = 4 * PAGE


def block_bytes(nbytes: int) -> int:
    """Size of the block granted for ``nbytes``, rounded to a size class so blocks can be reused."""
    return -(-max(nbytes, 1) // _CLASS) * _CLASS


def page_offset(position: int) -> int:
    """Offset in a block of the byte at file ``position``, so that file and memory pages align."""
    return position % PAGE


def span_bytes(nbytes: int) -> int:
    """Size in whole pages that holds ``nbytes`` at any alignment."""
    return nbytes + 2 * PAGE
