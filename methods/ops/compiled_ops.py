"""Compiled loops for what torch can only do in many passes over memory.

Optional: they need numba (the extra ``fast``), are used where the schedule has memory for them,
and change no byte of any result. Where a compiler might fuse, or add up in another order, that is
proved on the spot (`_PROOFS`): before the first use a probe is computed both ways, and where a bit
differs, on whatever machine, torch does the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeloom.engine.hardware.machine_code import Function, Library
from mergeloom.methods.ops import torch_dots as dots
from mergeloom.methods.ops.descriptions import Draw, Kept, Limit, Operands
from mergeloom.methods.ops.draws import HASH
from mergeloom.methods.ops.loops.sizes import DOT_RUN, RUN, work_bytes
from mergeloom.methods.ops.torch_elect import CANCELLED, elected_sum
from mergeloom.methods.ops.torch_softmax import softmax_sums
from mergeloom.methods.ops.torch_sums import sum_of_runs

if TYPE_CHECKING:
    from torch import Tensor


class Loops:
    """The loops of `methods.ops.loops`, called with tensors: contiguous, on the CPU."""

    def __init__(self, functions: Mapping[str, Function]) -> None:
        self._functions = functions

    def count_high(self, operands: Operands, low: int, counts: Tensor) -> int:
        """Count the magnitudes of a difference by their bits above the ``low`` ones.

        Adds to ``counts`` (int64) and returns how many are not zero.
        """
        vectors, size = _vectors([(operands, Kept())]), operands[0].numel()
        return int(self._call("count_high", vectors, size, low, counts))

    def count_low(
        self,
        operands: Operands,
        highs: Sequence[int],
        low: int,
        step: int,
        counts: Sequence[Tensor],
        levels: Any,
    ) -> None:
        """Count magnitudes with one of ``highs`` as high bits by their ``low`` bits.

        Each of ``highs`` has ``counts`` (int64) of its own, and a row of ``levels`` (an array of
        int32), which count those low bits that are multiples of 2**``step``.
        """
        import numpy as np

        vectors, size = _vectors([(operands, Kept())]), operands[0].numel()
        keys, tables = np.array(highs, np.int32), np.array([_address(each) for each in counts])
        self._call("count_low", vectors, size, keys, len(highs), low, step, tables, levels)

    def magnitude_sums(
        self, operands: Operands, kept: Kept, squares: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`methods.ops.torch_sums.magnitude_sum` of a vector and of its kept part, or squares."""
        import torch

        size = operands[0].numel()
        whole, rest = torch.empty(2, -(-size // RUN))
        vectors = _vectors([(operands, kept)])
        self._call("run_sums", vectors, _hash(), size, squares, whole, rest)
        return sum_of_runs(whole), sum_of_runs(rest)

    def dot_products(self, vectors: Sequence[Operands]) -> Tensor:
        """`methods.ops.torch_dots.dot_products` of vectors."""
        import torch

        size, count = vectors[0][0].numel(), len(dots.pairs(len(vectors)))
        sums = torch.empty(count, -(-size // DOT_RUN), dtype=torch.float64)
        described = _vectors([(vector, Kept()) for vector in vectors])
        self._call("dot_products", described, len(vectors), size, sums)
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
        ``coefficients``; with ``votes`` their `methods.ops.torch_elect.elected_sum`.
        """
        described = _vectors(vectors)
        described["coefficient"] = coefficients
        described["vote"] = coefficients if votes is None else votes
        described["share"] = coefficients if shares is None else shares
        self._call(
            "combine",
            *(described, len(vectors), _hash()),
            *(votes is not None, shares is not None, CANCELLED),
            *((0, 0) if base is None else _place(base)),
            *(scale, out, out.numel()),
        )

    def choose_by_rank(
        self, operands: Operands, key: int, start: int, steps: Tensor, notes: Tensor
    ) -> None:
        """Choose elements at random, by bounds that hang on ranks, and write that to ``notes``.

        The numbers are those of ``key`` (`methods.ops.draws`) from element ``start`` on. ``steps``
        (int32) are as many as elements in a row of the grain, and fall: that of rank r by falling
        magnitude in its row, equal ones by their index, is the bound of an element. ``notes``
        (uint8) are as many as `methods.ops.loops.sizes.notes_bytes` says. What is 0 may be chosen
        or not.
        """
        row, size = steps.numel(), operands[0].numel()
        vectors = _vectors([(operands, Kept(draw=Draw.of(key, start, int(steps[0]))))])
        self._call("choose_by_rank", vectors, _hash(), steps, row, notes, size, row=row)

    def choose(self, operands: Operands, least: float, out: Tensor) -> None:
        """Write to ``out`` (float32) the first of a vector's operands, or the second.

        The first is taken where the vector's magnitude is at least ``least``.
        """
        self._call("choose", _vectors([(operands, Kept())]), least, out, out.numel())

    def softmax_sums(self, base: Tensor, other: Tensor) -> Tensor:
        """`methods.ops.torch_softmax.softmax_sums` of two matrices (float32 or bfloat16)."""
        import torch

        rows, row = base.shape
        sums = torch.empty(5, rows, dtype=torch.float64)
        self._call("softmax_sums", *_place(base), *_place(other), rows, row, sums)
        return sums

    def _call(self, name: str, *arguments: Any, row: int = 0) -> Any:
        """Call a loop with numbers, tensors and arrays, and with memory to work in."""
        import numpy as np

        vectors = arguments[0]
        count = len(vectors) if isinstance(vectors, np.ndarray) else 1
        work = np.empty(-(-work_bytes(count, row) // 8))
        return self._functions[name](*map(_address, arguments), _address(work))


def _address(argument: Any) -> Any:
    """A number as it is; of a tensor or an array, where its elements begin."""
    import numpy as np
    import torch

    if isinstance(argument, torch.Tensor):
        return _place(argument)[0]
    if isinstance(argument, np.ndarray):
        return argument.ctypes.data
    return argument


def _vectors(vectors: Sequence[tuple[Operands, Kept]]) -> Any:
    """Records of `methods.ops.loops.record.VECTOR`, valid as long as the tensors are."""
    import numpy as np

    from mergeloom.methods.ops.loops.record import VECTOR

    described = np.zeros(len(vectors), VECTOR)
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
            record["bound"] = draw.bound
        if kept.noted is not None:
            record["noted"], _ = _place(kept.noted)
    return described


def _place(tensor: Tensor) -> tuple[int, int]:
    """Address of a tensor and bytes of an element."""
    assert tensor.is_contiguous()
    return tensor.data_ptr(), tensor.element_size()


@cache
def _hash() -> Any:
    import numpy as np

    return np.array(HASH, np.uint32)


class LoopLibrary(Library):
    """The loops of `methods.ops.loops` as machine code; kernels get `Loops`."""

    def trusted(self, functions: Mapping[str, Function]) -> Loops | None:
        loops = Loops(functions)
        agree = all(proof(loops) for name, proof in _PROOFS.items() if name in functions)
        return loops if agree else None


LIBRARY = LoopLibrary(
    "mergeloom.methods.ops.loops.build", Path(__file__).resolve().parent / "loops"
)


def _combines_alike(loops: Loops) -> bool:
    """Whether `Loops.combine` gives the bits that torch gives on this machine."""
    import torch

    base, *inputs = _probe()
    limits = [Limit(0.1 * number, 0.2 * number, 1111 * number) for number in range(4)]
    votes, coefficients, shares = (0.3, 0.7, -0.2, 1.1), (0.1, 0.9, 0.5, -0.3), (0.3, 0.6, 0.2, 0.8)
    out, expected = torch.empty(2, base.numel())
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
    work = tuple(torch.empty(3, base.numel()))
    elected_sum(vectors, votes, coefficients, shares, expected, work)
    torch.add(base, expected, alpha=0.7, out=expected)
    return torch.equal(out.view(torch.int32), expected.view(torch.int32))


def _multiplies_alike(loops: Loops) -> bool:
    """Whether `Loops.dot_products` gives the bits that torch gives on this machine."""
    import torch

    base, *inputs = _probe()
    products = loops.dot_products([(each, base) for each in inputs])
    floats = [each.float() - base for each in inputs]
    return torch.equal(products, dots.dot_products(floats, lambda: torch.empty(base.numel())))


def _diverges_alike(loops: Loops) -> bool:
    """Whether `Loops.softmax_sums` gives the bits that torch gives on this machine."""
    import torch

    base, other, *_ = (each.view(-1, 1667)[:, :-1].contiguous() for each in _probe())
    return torch.equal(loops.softmax_sums(base, other), softmax_sums(base.float(), other.float()))


_PROOFS = {
    "combine": _combines_alike,
    "dot_products": _multiplies_alike,
    "softmax_sums": _diverges_alike,
}
"""Computations on floats that depend on how a compiler orders and rounds."""


def _probe() -> list[Tensor]:
    import torch

    source = torch.Generator().manual_seed(0)
    drawn = [torch.randn(5001, generator=source) for _ in range(5)]
    drawn[1] = drawn[1].bfloat16()
    return drawn
