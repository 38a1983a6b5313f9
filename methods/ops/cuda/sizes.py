"""Sizes that the code of devices and its callers share; imports nothing: planning uses some."""

from __future__ import annotations

MAX_VECTORS = 16
"""Maximum number of vectors of an operation: they are arguments of one launch."""

MAX_KEYS = 48
"""Maximum number of buckets, of all vectors, counted at once."""

MAX_BLOCKS = 256
"""Maximum number of partial sums."""

_MAX_SUMS = 160
_MAX_LEVELS = 64 * MAX_KEYS

WORKSPACE_BYTES = 8 * _MAX_SUMS * MAX_BLOCKS + 4 * _MAX_SUMS + 4 * _MAX_LEVELS
"""Size of ``struct Workspace``."""
