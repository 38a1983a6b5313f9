"""Sizes shared by `operations.cu` and its callers; imports nothing, because planning uses some."""

from __future__ import annotations

MOST_VECTORS = 16
"""Maximum number of vectors of an operation: they are arguments of one launch."""

MOST_KEYS = 48
"""Maximum number of buckets, of all vectors, counted at once."""

MOST_BLOCKS = 256
"""Maximum number of partial sums."""

_MOST_SUMS = 160
_MOST_LEVELS = 64 * MOST_KEYS

WORKSHOP_BYTES = 8 * _MOST_SUMS * MOST_BLOCKS + 4 * _MOST_SUMS + 4 * _MOST_LEVELS
"""Size of ``struct Workshop``."""
