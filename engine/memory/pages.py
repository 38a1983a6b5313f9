"""Page arithmetic: block sizes, and offsets of aligned reads."""

from __future__ import annotations

PAGE = 4096
"""Alignment in bytes of blocks, and of direct reads and writes."""


_SIZE_CLASS = 4 * PAGE
"""Block sizes in bytes are multiples of this, so that blocks can be reused."""


def block_bytes(nbytes: int) -> int:
    """Size in bytes of the block granted for ``nbytes``: rounded up to a multiple of the size
    class."""
    return -(-max(nbytes, 1) // _SIZE_CLASS) * _SIZE_CLASS


def page_offset(position: int) -> int:
    """Offset in a block for the byte at file ``position`` at which pages of file and memory
    align."""
    return position % PAGE


def span_bytes(nbytes: int) -> int:
    """Size in whole pages that holds ``nbytes`` at any alignment."""
    return nbytes + 2 * PAGE
