"""The layout of the records passed to loops, from which numba and ctypes derive their types."""

from __future__ import annotations

VECTOR = (
    ("address", "q"),
    ("bytes", "q"),
    ("minus", "q"),
    ("minus_bytes", "q"),
    ("factors", "q"),
    ("factor_row", "q"),
    ("factor_columns", "q"),
    ("first_column", "q"),
    ("above", "?"),
    ("above_end", "q"),
    ("above_until_end", "f"),
    ("above_from_end", "f"),
    ("upto", "?"),
    ("upto_end", "q"),
    ("upto_until_end", "f"),
    ("upto_from_end", "f"),
    ("draws", "?"),
    ("first", "I"),
    ("second", "I"),
    ("word_end", "q"),
    ("next_first", "I"),
    ("next_second", "I"),
    ("bound", "i"),
    ("marks", "q"),
    ("vote", "f"),
    ("coefficient", "f"),
    ("share", "f"),
)
"""Fields of `methods.ops.interface.Vector` with its `KeepRule` and weights; types as in `struct`.

``address`` and ``minus`` are the addresses of the two arrays (``minus`` may be 0), ``bytes`` and
``minus_bytes`` their element sizes in bytes. ``factors`` is the address of float32 factors, or 0:
one per ``factor_row`` elements or, if ``factor_columns`` is not 0, one per column, where the first
element is in column ``first_column``. Random numbers have the key words ``first`` and ``second``
for elements before ``word_end``, then ``next_first`` and ``next_second``. ``marks`` is an address,
or 0."""

BLOCKS = (
    ("numbers", "q"),
    ("kind", "q"),
    ("across", "q"),
    ("columns", "q"),
    ("rows", "q"),
    ("first", "q"),
    ("height", "q"),
    ("down", "q"),
    ("row_step", "q"),
    ("step", "q"),
    ("groups", "q"),
    ("table", "q"),
    ("nested", "q"),
    ("nested_size", "q"),
    ("offset", "f"),
)
"""Fields of `methods.ops.interface.Blocks`; types as in `struct`.

``numbers`` is an address of elements of an `ElementType`; ``first`` is the index of the grain's
first row. A matrix has ``height`` rows and ``down`` rows of blocks, each of ``rows`` rows and
``across`` blocks; the number of block j in row i of blocks is element ``row_step`` · i + ``step`` ·
j. Blocks are ``columns`` wide, unless ``groups`` (address of one int32 per column) has the block of
each column. With a ``table`` (address of 256 float32 numbers), a number n means table[n] · s +
``offset``, where ``nested`` (address, float32) has one s for each run of ``nested_size`` numbers.
"""
