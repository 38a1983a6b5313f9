"""A weight stored as codes."""

from __future__ import annotations

from typing import NamedTuple

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.methods.inputs.dequantise import Dequantise

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Coded:
    """A quantised weight: ``kernel`` computes its values from ``codes`` and ``side`` inputs.

    With ``turned``, the last two dimensions of the codes are transposed first. ``swapped`` means
    that the values are the transpose of the model's weight.
    """

    codes: StoredTensor
    kernel: Dequantise
    side: tuple[StoredTensor, ...]
    swapped: bool = False
    turned: bool = False

    @property
    def shape(self) -> Shape:
        """The shape of the weight."""
        shape = self.kernel.shape or self.codes.shape
        return (*shape[:-2], shape[-1], shape[-2]) if self.swapped else shape

    def check(self) -> None:
        """Check that the side inputs match the codes.

        Raises:
            ValueError: it does not.
        """
        shape = self.codes.shape
        if self.turned:
            shape = (*shape[:-2], shape[-1], shape[-2])
        self.kernel.output_shape([shape], [each.shape for each in self.side])


class Found(NamedTuple):
    """The weight's name, its value, the tensors it is computed from, and those not needed."""

    name: str
    value: Coded
    used: list[str]
    unused: list[str]


def text(shape: Shape) -> str:
    """A shape as text for messages."""
    return "x".join(map(str, shape)) or "1"
