"""Descriptions of arithmetic: a difference, a rule for what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergeloom.methods.ops.draws import WORD, words

if TYPE_CHECKING:
    from torch import Tensor


Operands = tuple["Tensor", "Tensor | None"] | tuple["Tensor", "Tensor", "Tensor"]
"""A vector as the difference of two tensors (float32 or bfloat16), or one tensor and ``None``.

A third tensor (float32) has factors, one for each row of the difference."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A magnitude: ``before`` for the first ``end`` elements of a grain, ``after`` for the rest."""

    before: float
    after: float
    end: int


@dataclass(frozen=True, slots=True)
class Draw:
    """A random choice: elements whose random numbers lie below a bound.

    The words (`methods.ops.draws.words`) that the numbers are made of are ``before`` for the first
    ``end`` elements of a grain, ``after`` for the rest.
    """

    before: tuple[int, int]
    after: tuple[int, int]
    end: int
    bound: int

    @staticmethod
    def of(key: int, start: int, bound: int) -> Draw:
        """The choice by the numbers of ``key`` in a grain from element ``start`` on."""
        end = WORD - start % WORD
        return Draw(words(key, start), words(key, start + end), end, bound)


@dataclass(frozen=True, slots=True)
class Kept:
    """What of a vector is kept on a grain: all that each condition given lets through.

    ``above``: what is larger in magnitude, or NaN. ``upto``: what is not larger, and no NaN.
    ``draw``: what is chosen at random. ``noted`` (uint8): what these notes on the grain name.
    """

    above: Limit | None = None
    upto: Limit | None = None
    draw: Draw | None = None
    noted: Tensor | None = None
