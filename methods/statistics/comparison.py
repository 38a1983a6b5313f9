"""Comparison of two tensors, and of their changes to a base: sums and counts over all elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainSum, GrainView, Use
from mergeloom.engine.graph.sums import GrainSums
from mergeloom.methods.ops.interface import Vector

_SIGN_UNIT = 2.0**-100
"""Changes are clipped to this magnitude to get their signs; it is smaller than any difference of
weights."""


@dataclass(frozen=True, slots=True)
class PairSums:
    """Float64 sums over the elements of two tensors a and b, and a count.

    ``changed`` counts the elements that are not equal; ``difference`` is Σ(b-a)².
    """

    a: float
    """Σa²"""
    b: float
    """Σb²"""
    product: float
    """Σab"""
    difference: float
    changed: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of a and b to a base; τ is a change rounded to float32.

    ``both`` counts the elements changed by both, ``opposed`` those changed in opposite directions.
    """

    base: float
    """Σbase²"""
    a: float
    """Σ(τ of a)²"""
    b: float
    product: float
    """Σ(τ of a)(τ of b)"""
    changed_by_a: int
    changed_by_b: int
    both: int
    opposed: int


@dataclass(frozen=True)
class Comparison(GrainSum["tuple[PairSums, Changes | None]"]):
    """`PairSums` of inputs 0 and 1 and, with ``base``, their `Changes` to input 2."""

    base: bool

    @property
    def uses(self) -> tuple[Use, ...]:
        own = (Use("dots", 2), Use("dots"), Use("count_changed"))
        return (*own, Use("count_changed", 2), Use("combine"), Use("step")) if self.base else own

    @property
    def scratch(self) -> int:
        return 3 if self.base else 0

    def accumulator_bytes(self, grains: Grains) -> int:
        return 64 * 1024

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        ops, (a, b) = grain.ops, grain.inputs[:2]
        difference = Vector(b, a)
        found = [*ops.dots([Vector(a), Vector(b)]), *ops.dots([difference])]
        found += list(ops.count_changed([difference], 0.0))[:1]
        if self.base:
            base = grain.inputs[2]
            changes = [Vector(a, base), Vector(b, base)]
            found += [*ops.dots([Vector(base)]), *ops.dots(changes)]
            found += list(ops.count_changed(changes, 0.0))
            zero, *signs = grain.take(), grain.take(), grain.take()
            ops.combine([Vector(base)], [0.0], zero)
            for change, sign in zip(changes, signs, strict=True):
                ops.step(change, _SIGN_UNIT, zero, sign)
            # Equal signs differ by nothing, a sign and zero by one unit, opposite signs by two.
            found += list(ops.count_changed([Vector(*signs)], _SIGN_UNIT))[:1]
        into.add(grain.index, ops.sums(found))

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> tuple[PairSums, Changes | None]:
        numbers = [float(each) for each in total.total]
        aa, ab, bb, dd, changed, *rest = numbers
        sizes = PairSums(aa, bb, ab, dd, int(changed))
        if not self.base:
            return sizes, None
        base, ta, tab, tb, by_a, alone_a, by_b, _, opposed = rest
        both = int(by_a - alone_a)
        return sizes, Changes(base, ta, tb, tab, int(by_a), int(by_b), both, int(opposed))
