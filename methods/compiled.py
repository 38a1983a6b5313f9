"""Compiled loops for what torch can only do in many passes over memory.

Optional: they need numba (the extra ``fast``), are used where the schedule grants the memory of a
compiler, and change no byte of any result. That is proved on the spot: before the first use a
probe is computed both ways, and where a bit differs, on whatever machine, torch does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from engine.kernel import GrainView
from methods import dots
from methods.elect import CANCELLED, elected_sum
from methods.random import HASH, WORD, words
from methods.sums import RUN, sum_of_runs

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

    The words (`methods.random.words`) that the numbers are made of are ``before`` for the first
    ``end`` elements of a grain, ``after`` for the rest. ``bound`` is a number; or a tensor (int32)
    as long as a row of the grain, whose numbers fall: that of rank r by falling magnitude in its
    row, equal ones by their index, is the bound of an element.
    """

    before: tuple[int, int]
    after: tuple[int, int]
    end: int
    bound: int | Tensor

    @staticmethod
    def of(key: int, start: int, bound: int | Tensor) -> Draw:
        """The choice by the numbers of ``key`` in a grain from element ``start`` on."""
        end = WORD - start % WORD
        return Draw(words(key, start), words(key, start + end), end, bound)


@dataclass(frozen=True, slots=True)
class Kept:
    """What of a vector is kept on a grain: all that each condition given lets through.

    ``above``: what is larger in magnitude, or NaN. ``upto``: what is not larger, and no NaN.
    ``draw``: what is chosen at random.
    """

    above: Limit | None = None
    upto: Limit | None = None
    draw: Draw | None = None


class Loops:
    """The loops of `methods.jit`, called with tensors: contiguous, on the CPU."""

    def __init__(self, jit: Any) -> None:
        self._jit = jit

    def count_high(self, operands: Operands, low: int, counts: Tensor) -> int:
        """Count the magnitudes of a difference by their bits above the ``low`` ones.

        Adds to ``counts`` (int64) and returns how many are not zero.
        """
        vectors, size = self._vectors([(operands, Kept())]), operands[0].numel()
        return int(self._jit.count_high(vectors, size, low, counts.numpy()))

    def count_low(
        self,
        operands: Operands,
        highs: Sequence[int],
        low: int,
        step: int,
        counts: Sequence[Tensor],
        levels: Tensor,
    ) -> None:
        """Count magnitudes with one of three ``highs`` at most as high bits by their ``low`` bits.

        Each of ``highs`` has ``counts`` (int64) of its own, and a row of ``levels`` (int32), which
        count those low bits that are multiples of 2**``step``.
        """
        import numpy as np

        tables = [each.numpy() for each in counts]
        while len(tables) < 3:  # always three, so that the loop is compiled once
            tables.append(tables[-1])
        vectors, size = self._vectors([(operands, Kept())]), operands[0].numel()
        self._jit.count_low(
            vectors,
            size,
            np.array(highs, np.int32),
            low,
            step,
            tuple(tables),
            levels.numpy(),
        )

    def magnitude_sums(
        self, operands: Operands, kept: Kept, squares: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`methods.sums.magnitude_sum` of a vector, and of what is kept of it, or of squares."""
        import torch

        size = operands[0].numel()
        whole, rest = torch.empty(2, -(-size // RUN))
        vectors = self._vectors([(operands, kept)])
        self._jit.run_sums(vectors, _hash(), size, squares, whole.numpy(), rest.numpy())
        return sum_of_runs(whole), sum_of_runs(rest)

    def dot_products(self, vectors: Sequence[Operands]) -> Tensor:
        """`methods.dots.dot_products` of vectors."""
        import torch

        size, count = vectors[0][0].numel(), len(dots.pairs(len(vectors)))
        sums = torch.empty(count, -(-size // dots.RUN), dtype=torch.float64)
        described = self._vectors([(vector, Kept()) for vector in vectors])
        self._jit.dot_products(described, size, sums.numpy())
        return dots.sum_of_runs(sums)

    def combine(
        self,
        vectors: Sequence[tuple[Operands, Kept]],
        coefficients: Sequence[float],
        votes: Sequence[float] | None,
        shares: Sequence[float] | None,
        base: Tensor | None,
        scale: float,
        out: Tensor,
    ) -> None:
        """Write ``base`` + ``scale`` times the combination of sparse vectors to ``out`` (float32).

        Without a base, write the combination itself. It is the sum of the vectors times their
        ``coefficients``; with ``votes`` their `methods.elect.elected_sum`.
        """
        import numpy as np

        described = self._vectors(vectors)
        described["coefficient"] = coefficients
        described["vote"] = coefficients if votes is None else votes
        described["share"] = coefficients if shares is None else shares
        self._jit.combine(
            described,
            _hash(),
            votes is not None,
            shares is not None,
            np.float32(CANCELLED),
            *((0, 0) if base is None else _place(base)),
            np.float32(scale),
            out.view(-1).numpy(),
        )

    def choose(self, operands: Operands, least: float, out: Tensor) -> None:
        """Write to ``out`` (float32) the first of a vector's operands, or the second.

        The first is taken where the vector's magnitude is at least ``least``.
        """
        self._jit.choose(self._vectors([(operands, Kept())]), least, out.view(-1).numpy())

    def subtract_highest(self, rows: Tensor, out: Tensor, highest: Tensor) -> None:
        """Write rows (float32 or bfloat16) less the highest element of each to ``out`` (float64).

        ``highest`` (float64) gets those elements; in a row with NaN, any of its elements.
        """
        self._jit.subtract_highest(*_place(rows), out.numpy(), highest.view(-1).numpy())

    def weigh(self, minuend: Tensor, subtrahend: Tensor, out: Tensor) -> None:
        """Multiply ``out`` (float64), in place, by the difference of two tensors, in float64."""
        self._jit.weigh(*_place(minuend), *_place(subtrahend), out.view(-1).numpy())

    def _vectors(self, vectors: Sequence[tuple[Operands, Kept]]) -> Any:
        """Records of `methods.jit.VECTOR`, valid as long as the tensors are."""
        import numpy as np

        described = np.zeros(len(vectors), self._jit.VECTOR)
        for record, ((vector, minus, *factors), kept) in zip(described, vectors, strict=True):
            record["address"], record["bytes"] = _place(vector)
            for each in factors:
                record["factors"], _ = _place(each)
                record["factor_row"] = vector.numel() // each.numel()
            if minus is not None:
                record["minus"], record["minus_bytes"] = _place(minus)
            for name, limit in (("above", kept.above), ("upto", kept.upto)):
                if limit is not None:
                    record[name] = True
                    record[f"{name}_before"] = limit.before
                    record[f"{name}_after"] = limit.after
                    record[f"{name}_end"] = limit.end
            if kept.draw is not None:
                draw = kept.draw
                record["draws"], record["word_end"] = True, draw.end
                record["first"], record["second"] = draw.before
                record["next_first"], record["next_second"] = draw.after
                if isinstance(draw.bound, int):
                    record["bound"] = draw.bound
                else:
                    record["steps"], _ = _place(draw.bound)
                    record["ranked_row"], record["bound"] = draw.bound.numel(), draw.bound[0]
        return described


def _place(tensor: Tensor) -> tuple[int, int]:
    """Address of a tensor and bytes of an element."""
    assert tensor.is_contiguous()
    return tensor.data_ptr(), tensor.element_size()


@cache
def _hash() -> tuple[Any, ...]:
    import numpy as np

    return tuple(np.uint32(word) for word in HASH)


def loops_for(grain: GrainView) -> Loops | None:
    """The compiled loops, where the schedule granted them and they prove equal here."""
    return _proven() if grain.compiled else None


@cache
def _proven() -> Loops | None:
    try:
        from methods import jit

        loops = Loops(jit)
        return loops if _agrees(loops) else None
    except Exception:  # an optional speed-up, in whatever state it was installed, stops no merge
        return None


def _agrees(loops: Loops) -> bool:
    """Whether arithmetic on floats gives the bits that torch gives on this machine."""
    import torch

    source = torch.Generator().manual_seed(0)
    base, *inputs = [torch.randn(5003, generator=source) for _ in range(5)]
    inputs[0] = inputs[0].bfloat16()
    limits = [Limit(0.1 * number, 0.2 * number, 1111 * number) for number in range(4)]
    votes, coefficients, shares = (0.3, 0.7, -0.2, 1.1), (0.1, 0.9, 0.5, -0.3), (0.3, 0.6, 0.2, 0.8)
    out, expected = torch.empty(2, 5003)
    described = [
        ((each, base), Kept(above=limit)) for each, limit in zip(inputs, limits, strict=True)
    ]
    loops.combine(described, coefficients, votes, shares, base, 0.7, out)
    vectors = [each.float() - base for each in inputs]
    for vector, limit in zip(vectors, limits, strict=True):
        for part, value in (
            (vector[: limit.end], limit.before),
            (vector[limit.end :], limit.after),
        ):
            torch.ops.aten.hardshrink.out(part, value, out=part)
    elected_sum(vectors, votes, coefficients, shares, expected, tuple(torch.empty(3, 5003)))
    torch.add(base, expected, alpha=0.7, out=expected)
    products = loops.dot_products([(each, base) for each in inputs])
    floats = [each.float() - base for each in inputs]
    return torch.equal(out.view(torch.int32), expected.view(torch.int32)) and torch.equal(
        products, dots.dot_products(floats, lambda: torch.empty(5003))
    )
