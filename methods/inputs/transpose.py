"""Transposition of computed values.

Tensors that are merely stored transposed are arranged by the reader:
`engine.graph.stored_tensor.StoredTensor.transpose`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeloom.engine.base.grains import Access
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import Array, GrainView, Kernel, Use

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transpose(Kernel):
    """The one input (…, a, b) transposed to (…, b, a)."""

    access = Access.MATRIXWISE
    is_aligned = False
    accepts_integers = True
    uses = (Use("transpose"),)

    def output_shape(self, inputs: Sequence[Shape], side: Sequence[Shape]) -> Shape:
        (shape,) = inputs
        if len(shape) < 2:
            raise ValueError(f"{shape} has fewer than two dimensions")
        return (*shape[:-2], shape[-1], shape[-2])

    def apply(
        self, grain: GrainView, out: Array, statistics: Sequence[Any], prefix: tuple[int, ...]
    ) -> None:
        rows, columns = grain.shape[-2:]
        grain.ops.transpose(grain.inputs[0], (rows, columns), out)
