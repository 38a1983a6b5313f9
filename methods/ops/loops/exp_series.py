"""What e**x is computed from, by loops and by torch alike. Nothing is imported but numbers.

x = k ln 2 + r, where k is the nearest integer to x / ln 2, and e**x = 2**k e**r. The series of e**r
is cut off where its next term, of 13! in the denominator, is below 2e-16: |r| is at most ln(2) / 2.
ln 2 is a sum of two numbers, the first of so few bits that its products with k are exact.
"""

from __future__ import annotations

from math import factorial, log

LEAST = -708.0
"""Of any x below, e**x is that of this one: about 3e-308, which is a normal number."""

LOG2_E = 1 / log(2)

LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")

TO_INTEGER = 1.5 * 2.0**52
"""Whatever number, of less than 51 bits, is added to this one is rounded to an integer; the last
bits of the sum are that integer's."""

MANTISSA_BITS, EXPONENT_BIAS = 52, 1023
"""Of a float64 number."""

TERMS = tuple(1 / factorial(k) for k in range(13))
"""Coefficients of the powers of r, from r**0 on."""
