"""Constants for computing exp(x) in float64, the same in loops and in torch.

x = k ln 2 + r, where k is the integer nearest to x / ln 2, so exp(x) = 2**k exp(r) with
|r| ≤ ln(2) / 2. The Taylor series of exp(r) ends before r**13 / 13!, which is below 2e-16. ln 2 is
the sum of two numbers, the first with so few bits that its products with k are exact (Cody and
Waite 1980).
"""

from __future__ import annotations

from math import factorial, log

LEAST = -708.0
"""Lower bound for x: smaller values are raised to it. exp of it, about 3e-308, is normal."""

LOG2_E = 1 / log(2)

LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")

TO_INTEGER = 1.5 * 2.0**52
"""Adding a number below 2**51 to this rounds the number to an integer, found in the low bits of the
sum."""

MANTISSA_BITS, EXPONENT_BIAS = 52, 1023
"""Mantissa bits and exponent bias of float64."""

TERMS = tuple(1 / factorial(k) for k in range(13))
"""Coefficients of the powers of r, from r**0 on."""
