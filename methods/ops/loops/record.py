"""The records that are handed to loops: numba and ctypes make their types of them."""

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
    ("above_before", "f"),
    ("above_after", "f"),
    ("upto", "?"),
    ("upto_end", "q"),
    ("upto_before", "f"),
    ("upto_after", "f"),
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
"""Fields of a vector with their types, as numpy and `struct` abbreviate them.

They are the addresses of its two arrays (``minus`` may be 0: none) and the bytes of an element; the
address of float32 factors (or 0), of which there is one for every ``factor_row`` elements or, where
``factor_columns`` is not 0, one for each of that many columns, the first element being in column
``first_column``; the conditions of `methods.ops.words.KeepRule` (``marks`` is an address, or 0);
and the weights it has."""

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
"""Fields of `methods.ops.words.Blocks`, likewise.

``numbers`` (an address) are of a `Kind`; ``first`` is the number of the first row at hand. Row r is
in row r // ``rows`` of the blocks of its matrix, which has ``height`` rows and ``down`` rows of
blocks; the number of its block j is ``row_step`` times that row plus ``step`` times j. Blocks are
``columns`` wide, or else ``groups`` (the address of an int32 for each column) says in which block a
column is. With a ``table`` (the address of float32 numbers) each number n stands for table[n] times
that of ``nested`` (float32) for ``nested_size`` numbers at a time, plus ``offset``.
"""
