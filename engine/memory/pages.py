"""Pages of memory: how large a block is, and where an aligned read begins."""

from __future__ import annotations

PAGE = 4096
"""Alignment in bytes of blocks, and of direct reads and writes."""


_CLASS = 4 * PAGE


def block_bytes(nbytes: int) -> int:
    """Size of the block that is granted for ``nbytes``; sizes fall into classes to be reused."""
    return -(-max(nbytes, 1) // _CLASS) * _CLASS


def lead(position: int) -> int:
    """Where in a block the byte at file ``position`` goes, so that pages match pages."""
    return position % PAGE


def span_bytes(nbytes: int) -> int:
    """Block size in bytes that holds ``nbytes`` at any alignment, widened to whole pages."""
    return nbytes + 2 * PAGE
