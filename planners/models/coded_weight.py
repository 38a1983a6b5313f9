"""One weight that is stored as codes."""

from __future__ import annotations

from typing import NamedTuple

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.methods.inputs.dequantise import Dequantise

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Coded:
    """One weight in codes: ``kernel`` over ``codes`` and ``beside`` gives its values.

    With ``turned`` the last two dimensions of the codes are exchanged before. ``swapped`` says
    that the values are those of the model's weight with the last two dimensions exchanged.
    """

    codes: StoredTensor
    kernel: Dequantise
    beside: tuple[StoredTensor, ...]
    swapped: bool = False
    turned: bool = False

    @property
    def shape(self) -> Shape:
        """That of the weight."""
        shape = self.kernel.shape or self.codes.shape
        return (*shape[:-2], shape[-1], shape[-2]) if self.swapped else shape

    def check(self) -> None:
        """Check that what lies beside the codes fits them.

        Raises:
            ValueError: it does not.
        """
        shape = self.codes.shape
        if self.turned:
            shape = (*shape[:-2], shape[-1], shape[-2])
        self.kernel.output_shape([shape], [each.shape for each in self.beside])


class Found(NamedTuple):
    """The weight's name, its value, the tensors that it is made of, and those of no use."""

    name: str
    value: Coded
    used: list[str]
    unused: list[str]


def text(shape: Shape) -> str:
    """A shape for people."""
    return "x".join(map(str, shape)) or "1"
