"""Compiled loops for what torch can only do in many passes over memory.

Optional: they need numba (the extra ``fast``), are used where the schedule grants the memory of a
compiler, and change no byte of any result. That is proved on the spot: before the first use a
probe is computed both ways, and where a bit differs, on whatever machine, torch does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from engine.kernel import GrainView

if TYPE_CHECKING:
    from torch import Tensor


Operands = tuple["Tensor", "Tensor | None"]
"""A vector as the difference of two tensors (float32 or bfloat16), or one tensor and ``None``."""


class Loops:
    """The loops of `methods.jit`, called with tensors: contiguous, on the CPU."""

    def __init__(self, jit: Any) -> None:
        self._jit = jit

    def count_high(self, operands: Operands, low: int, counts: Tensor) -> int:
        """Count the magnitudes of a difference by their bits above the ``low`` ones.

        Adds to ``counts`` (int64) and returns how many are not zero.
        """
        return int(self._jit.count_high(*_flat(operands), low, counts.numpy()))

    def count_low(
        self, operands: Operands, high: int, low: int, step: int, counts: Tensor, levels: Tensor
    ) -> int:
        """Count magnitudes with the high bits ``high`` by their ``low`` bits into ``counts``.

        ``levels`` (int32) counts those low bits that are multiples of 2**``step``. Returns how
        many elements there were.
        """
        tables = counts.numpy(), levels.numpy()
        return int(self._jit.count_low(*_flat(operands), high, low, step, *tables))

    def elected_sum(
        self,
        vectors: Sequence[Tensor],
        votes: Sequence[float],
        coefficients: Sequence[float],
        shares: Sequence[float] | None,
        cancelled: float,
        out: Tensor,
    ) -> None:
        """See `methods.elect.elected_sum`; the vectors are only read."""
        import numpy as np

        def floats(values: Sequence[float]) -> Any:
            return np.array(values, np.float32)

        self._jit.elected_sum(
            np.array([vector.data_ptr() for vector in vectors], np.int64),
            floats(votes),
            floats(coefficients),
            floats(votes if shares is None else shares),
            shares is not None,
            np.float32(cancelled),
            out.view(-1).numpy(),
        )

    def draw(self, words: Sequence[int], out: Tensor) -> None:
        """See `methods.random`; ``words`` are first, second, and three constants."""
        import numpy as np

        self._jit.draw(*(np.uint32(word) for word in words), out.numpy().view(np.uint32))

    def drop_from(self, vector: Tensor, numbers: Tensor, bound: int) -> None:
        """Set to zero, in place, elements of ``vector`` whose number is ``bound`` or more."""
        import torch

        self._jit.drop_from(
            vector.view(-1).view(torch.int32).numpy(), numbers.view(-1).numpy(), bound
        )

    def drop_by_rank(
        self, rows: Tensor, numbers: Tensor, steps: Tensor, width: int, buckets: int
    ) -> None:
        """Set to zero, in place, elements whose number is at least the step of their rank.

        The rank is by falling magnitude in a row, equal ones by their index; see
        `methods.jit.drop_by_rank`.
        """
        import torch

        bits = rows.view(torch.int32).numpy()
        self._jit.drop_by_rank(bits, numbers.numpy(), steps.numpy(), width, buckets)


def _flat(operands: Operands) -> tuple[Any, Any]:
    vector, minus = operands
    flat = _numbers(vector)
    return flat, flat[:0] if minus is None else _numbers(minus)


def _numbers(tensor: Tensor) -> Any:
    """Elements of a float32 tensor, or the bits of a bfloat16 one as uint16."""
    import numpy as np
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(-1).view(torch.int16).numpy().view(np.uint16)
    return tensor.view(-1).numpy()


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

    from methods.elect import CANCELLED, elected_sum

    source = torch.Generator().manual_seed(0)
    vectors = [torch.randn(5003, generator=source) for _ in range(4)]
    out, expected = torch.empty(2, 5003)
    votes, coefficients, shares = (0.3, 0.7, -0.2, 1.1), (0.1, 0.9, 0.5, -0.3), (0.3, 0.6, 0.2, 0.8)
    loops.elected_sum(vectors, votes, coefficients, shares, CANCELLED, out)
    work = tuple(torch.empty(3, 5003))
    elected_sum(vectors, votes, coefficients, shares, expected, work)
    return torch.equal(out.view(torch.int32), expected.view(torch.int32))
