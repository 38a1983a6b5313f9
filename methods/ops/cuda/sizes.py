"""Sizes that `words.cu` and its callers have to agree on. Planning needs some: nothing is
imported."""

from __future__ import annotations

MOST_VECTORS = 16
"""Vectors that a word works on at once, at most: they are arguments of one launch."""

MOST_KEYS = 16
"""Buckets that are counted at once, at most."""

MOST_BLOCKS = 256
"""Parts that a sum is made of, at most."""

_MOST_SUMS = 160
_MOST_LEVELS = 64 * MOST_KEYS

WORKSHOP_BYTES = 8 * _MOST_SUMS * MOST_BLOCKS + 4 * _MOST_SUMS + 4 * _MOST_LEVELS
"""``struct Workshop``."""
