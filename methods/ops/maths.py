"""Elementary functions of single numbers, numpy arrays, or tensors.

A rule from dot products to coefficients is written once with these functions. It works for a whole
tensor (single numbers, without a library), for all rows or columns of one, and on a device.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, Protocol


class Maths(Protocol):
    """Elementwise functions."""

    def sqrt(self, x: Any) -> Any: ...

    def sin(self, x: Any) -> Any: ...

    def acos(self, x: Any) -> Any: ...

    def clip(self, x: Any, low: float, high: float) -> Any: ...

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """``x`` where the condition holds, ``y`` elsewhere; both may be numbers."""


class NumberMaths:
    """For single floats. NaN is passed on, and the square root of a negative number is NaN."""

    def sqrt(self, x: float) -> float:
        return math.sqrt(x) if x >= 0 else math.nan

    def sin(self, x: float) -> float:
        return math.sin(x) if math.isfinite(x) else math.nan

    def acos(self, x: float) -> float:
        return math.acos(x) if -1 <= x <= 1 else math.nan

    def clip(self, x: float, low: float, high: float) -> float:
        return x if math.isnan(x) else min(max(x, low), high)

    def where(self, condition: bool, x: float, y: float) -> float:
        return x if condition else y


class ArrayMaths:
    """For arrays of a library with numpy's function names: numpy itself, or torch."""

    def __init__(self, library: ModuleType) -> None:
        self._library = library

    def sqrt(self, x: Any) -> Any:
        return self._library.sqrt(x)

    def sin(self, x: Any) -> Any:
        return self._library.sin(x)

    def acos(self, x: Any) -> Any:
        return self._library.arccos(x)

    def clip(self, x: Any, low: float, high: float) -> Any:
        return self._library.clip(x, low, high)

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        return self._library.where(condition, x, y)


NUMBERS = NumberMaths()


def divergences_of(sums: Any, library: Any) -> Any:
    """Divergences of rows (float64) from sums that both arithmetics compute.

    ``sums`` is a float64 matrix with one column for each row of the tensors: the maxima h₀ of the
    base and h₁ of the other, Σ exp(θ₀ - h₀), Σ exp(θ₁ - h₁), and Σ exp(θ₁ - h₁) τ.
    """
    base_highest, highest, base_total, total, weighted = sums
    moved = weighted / total + (base_highest - highest)
    return library.clip(moved + library.log(base_total / total), 0.0, library.inf)
