"""The record by which vectors are handed to loops. Needs no compiler."""

from __future__ import annotations

import numpy as np

VECTOR = np.dtype(
    [
        ("address", np.int64),
        ("bytes", np.int64),
        ("minus", np.int64),
        ("minus_bytes", np.int64),
        ("factors", np.int64),
        ("factor_row", np.int64),
        ("above", np.bool_),
        ("above_end", np.int64),
        ("above_before", np.float32),
        ("above_after", np.float32),
        ("upto", np.bool_),
        ("upto_end", np.int64),
        ("upto_before", np.float32),
        ("upto_after", np.float32),
        ("draws", np.bool_),
        ("first", np.uint32),
        ("second", np.uint32),
        ("word_end", np.int64),
        ("next_first", np.uint32),
        ("next_second", np.uint32),
        ("bound", np.int32),
        ("noted", np.int64),
        ("vote", np.float32),
        ("coefficient", np.float32),
        ("share", np.float32),
    ],
    align=True,
)
"""A vector: the addresses of its operands (``minus`` may be 0: none), the bytes of an element, the
address of a factor for each row (or 0) and the length of those rows, the conditions of
`methods.ops.descriptions.Kept` (``noted`` is an address, or 0), and the weights it has."""
