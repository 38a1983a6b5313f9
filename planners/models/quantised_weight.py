"""A weight stored as codes."""

from __future__ import annotations

from typing import NamedTuple

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.methods.inputs.dequantise import Dequantise

Shape = tuple[int, ...]


@dataclass(frozen=True)
class QuantisedWeight:
    """A quantised weight: ``kernel`` computes its values from ``codes`` and ``side`` inputs.

    With ``codes_transposed``, the last two dimensions of the codes are swapped before that. With
    ``values_transposed``, the values are the transpose of the model's weight.
    """

    codes: StoredTensor
    kernel: Dequantise
    side: tuple[StoredTensor, ...]
    values_transposed: bool = False
    codes_transposed: bool = False

    @property
    def shape(self) -> Shape:
        """The shape of the weight."""
        shape = self.kernel.shape or self.codes.shape
        return (*shape[:-2], shape[-1], shape[-2]) if self.values_transposed else shape

    def check(self) -> None:
        """Check that the side inputs match the codes.

        Raises:
            ValueError: they do not.
        """
        shape = self.codes.shape
        if self.codes_transposed:
            shape = (*shape[:-2], shape[-1], shape[-2])
        self.kernel.output_shape([shape], [each.shape for each in self.side])


class FoundWeight(NamedTuple):
    """A quantised weight in a checkpoint: its name, its value, the tensors it is computed from, and
    tensors beside it that are not needed."""

    name: str
    value: QuantisedWeight
    used: list[str]
    unused: list[str]


def shape_text(shape: Shape) -> str:
    """A shape as text for messages."""
    return "x".join(map(str, shape)) or "1"
